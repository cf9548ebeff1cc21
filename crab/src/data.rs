//! Data sets: item texts, training sequences, held-out next items.
//!
//! | data set | source | split |
//! |---|---|---|
//! | [`movielens`] | asset `ml-100k` | leave-one-out, seen items are not recommended again |
//! | [`industrial`] | asset `minionerec-industrial` | the paper's validation and test rows; training rows are reconstructed, see there |
//! | [`beauty`] | asset `beauty-sequences` | leave-one-out; ids only, no text |
//! | [`read_events`] | a user's own files | leave-one-out |
//! | [`synthetic`] | a seed | known next-item rule, planted popularity |

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use common::assets::Assets;
use common::data::movielens::MovieLens;
use common::data::{ReadOptions, Table};
use common::rng::Seed;
use common::{Error, Result};

use crate::sid::SidTable;

/// One prediction task: what came before, what came next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Index of the user's training sequence; `None` for a user without one.
    pub user: Option<usize>,
    /// Items before the target, oldest first.
    pub history: Vec<u32>,
    /// The next item.
    pub target: u32,
}

/// Items, sequences and held-out cases. Items are numbered from 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Name in reports.
    pub name: String,
    /// Id of each item in the source.
    pub ids: Vec<String>,
    /// Text of each item; empty where there is none.
    pub texts: Vec<String>,
    /// One training sequence per user, oldest first.
    pub train: Vec<Vec<u32>>,
    /// Cases for choosing settings.
    pub valid: Vec<Case>,
    /// Cases for the report.
    pub test: Vec<Case>,
    /// Whether an item of the history may be recommended again.
    pub repeats: bool,
    /// Semantic IDs that come with the data.
    pub released: Option<SidTable>,
    /// What readers of a table must know about the data.
    pub note: String,
}

impl Dataset {
    /// Number of items in the catalogue.
    pub fn items(&self) -> usize {
        self.ids.len()
    }

    /// Training interactions of each item (freq(i) of the paper): the training split alone.
    pub fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.items()];
        self.train.iter().flatten().for_each(|&item| counts[item as usize] += 1);
        counts
    }

    /// Hash of everything that a trained model depends on.
    pub fn fingerprint(&self) -> String {
        let mut bytes = Vec::new();
        let mut number = |n: u32| bytes.extend_from_slice(&n.to_le_bytes());
        for sequence in &self.train {
            number(sequence.len() as u32);
            sequence.iter().for_each(|&item| number(item));
        }
        for case in &self.valid {
            number(case.target);
            case.history.iter().for_each(|&item| number(item));
        }
        for text in &self.texts {
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
        }
        common::run::hash8(&bytes)
    }

    /// The first `users` training sequences with the cases of those users: a smaller set of the
    /// same kind.
    pub fn shrink(mut self, users: usize, cases: usize) -> Self {
        self.train.truncate(users);
        let known = |case: &Case| case.user.is_some_and(|user| user < users);
        self.valid.retain(known);
        self.test.retain(known);
        self.valid.truncate(cases);
        self.test.truncate(cases);
        self.note = format!("{} Shrunken to {users} users.", self.note).trim().to_owned();
        self
    }
}

/// Splits each sequence: last item for testing, the one before for validation (sequences of at
/// least three items); shorter ones stay whole in training.
fn leave_one_out(sequences: Vec<Vec<u32>>) -> (Vec<Vec<u32>>, Vec<Case>, Vec<Case>) {
    let (mut train, mut valid, mut test) = (Vec::new(), Vec::new(), Vec::new());
    for (user, mut sequence) in sequences.into_iter().enumerate() {
        if sequence.len() >= 3 {
            let case = |sequence: &mut Vec<u32>| {
                let target = sequence.pop().unwrap_or_default();
                Case { user: Some(user), history: sequence.clone(), target }
            };
            test.push(case(&mut sequence));
            valid.push(case(&mut sequence));
        }
        train.push(sequence);
    }
    (train, valid, test)
}

/// MovieLens-100k, all ratings as events, leave-one-out, RecBole's protocol (full ranking, seen
/// items masked). Texts are title, year and genres.
///
/// # Errors
/// An absent asset or a malformed file.
pub fn movielens(assets: &Assets) -> Result<Dataset> {
    let data = MovieLens::read(&assets.folder("ml-100k")?)?;
    let mut sequences = vec![Vec::new(); data.users.len()];
    for rating in &data.ratings {
        sequences[rating.user as usize].push(rating.movie);
    }
    let (train, valid, test) = leave_one_out(sequences);
    let texts = data.movies.iter().map(|movie| {
        let year = movie.year.map_or_else(String::new, |year| format!(" ({year})"));
        format!("{}{year}: {}", movie.title, movie.genres.join(", "))
    });
    Ok(Dataset {
        name: "ml-100k".into(),
        ids: data.movies.iter().map(|movie| movie.id.to_string()).collect(),
        texts: texts.collect(),
        train,
        valid,
        test,
        repeats: false,
        released: None,
        note: String::new(),
    })
}

/// Industrial and Scientific, Amazon 2018, as MiniOneRec split it: the paper's validation rows, test
/// rows and catalogue. The training rows are not public as such; each user's training events are
/// taken from the history of the user's first validation (else test) row, which holds up to 10
/// events of the training period: 29 % of the paper's training rows.
///
/// # Errors
/// An absent asset or a malformed file.
pub fn industrial(assets: &Assets) -> Result<Dataset> {
    let folder = assets.folder("minionerec-industrial")?;
    let (ids, texts) = read_items_json(&folder.join("item.json"))?;
    let number: HashMap<&str, u32> =
        ids.iter().enumerate().map(|(at, id)| (id.as_str(), at as u32)).collect();
    let mut users: BTreeMap<String, usize> = BTreeMap::new();
    let mut train: Vec<Vec<u32>> = Vec::new();
    let mut cases = |name: &str| -> Result<Vec<Case>> {
        let path = folder.join(name);
        let columns = ["user_id", "history_item_id", "item_id"];
        let table = Table::read(&path, &ReadOptions::select(&columns))?;
        let mut cases = Vec::with_capacity(table.len());
        for row in 0..table.len() {
            let item = |text: &str| {
                number.get(text).copied().ok_or_else(|| {
                    Error::data(
                        format!("item {text} in row {}", table.row_number(row)),
                        "an item of item.json",
                    )
                    .in_file(&path)
                })
            };
            let history = parse_list(table.text(row, 1)).ok_or_else(|| {
                table.column("history_item_id").map_or_else(
                    |error| error,
                    |column| column.cell(row).error("a list of item numbers such as ['3', '17']"),
                )
            })?;
            let history: Vec<u32> = history.iter().map(|text| item(text)).collect::<Result<_>>()?;
            let target = item(table.text(row, 2))?;
            let next = train.len();
            let user = *users.entry(table.text(row, 0).to_owned()).or_insert(next);
            if user == next {
                train.push(history.clone());
            }
            cases.push(Case { user: Some(user), history, target });
        }
        Ok(cases)
    };
    let valid = cases("valid.csv")?;
    let test = cases("test.csv")?;
    let index = folder.join("index.json");
    let (coded, released) = SidTable::read_index(&index)?;
    if coded != ids {
        let found = format!("semantic IDs of {} items", coded.len());
        return Err(Error::data(found, "those of the items of item.json").in_file(&index));
    }
    Ok(Dataset {
        name: "Industrial".into(),
        ids,
        texts,
        train,
        valid,
        test,
        repeats: true,
        released: Some(released),
        note: "The paper's test rows and catalogue; training rows reconstructed from histories, \
               29 % of the paper's."
            .into(),
    })
}

/// Amazon Beauty 2014 (5-core), leave-one-out: ids only.
///
/// # Errors
/// An absent asset or a malformed file.
pub fn beauty(assets: &Assets) -> Result<Dataset> {
    let path = assets.file("beauty-sequences", "sequential_data.txt")?;
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let mut sequences = Vec::new();
    let mut largest = 0;
    for (line, row) in text.lines().enumerate() {
        let ids: Option<Vec<u32>> = row.split_whitespace().map(|id| id.parse().ok()).collect();
        let ids = ids.filter(|ids| ids.iter().skip(1).all(|&id| id > 0)).ok_or_else(|| {
            Error::data(format!("line {}", line + 1), "a user and item numbers from 1")
                .in_file(&path)
        })?;
        largest = largest.max(ids.iter().skip(1).copied().max().unwrap_or(0));
        sequences.push(ids.iter().skip(1).map(|id| id - 1).collect());
    }
    let (train, valid, test) = leave_one_out(sequences);
    Ok(Dataset {
        name: "Beauty".into(),
        ids: (1..=largest).map(|id| id.to_string()).collect(),
        texts: vec![String::new(); largest as usize],
        train,
        valid,
        test,
        repeats: true,
        released: None,
        note: "No item texts: semantic IDs come from co-occurrence.".into(),
    })
}

/// Characters of a description that count; the rest is mostly boilerplate.
const DESCRIPTION: usize = 400;

/// Items of MiniOneRec's `item.json`: id → title, brand, description.
fn read_items_json(path: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let value: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&text).map_err(|error| {
            Error::data(error.to_string(), "an object of items with title and brand").in_file(path)
        })?;
    let mut items: Vec<(String, String)> = value
        .into_iter()
        .map(|(id, item)| {
            let field = |name: &str| item[name].as_str().unwrap_or("").trim().to_owned();
            let bare = field("description");
            let description = bare.trim_matches(['[', ']', '\'', '"']).chars().take(DESCRIPTION);
            let description: String = description.collect();
            (id, format!("{}. {}. {description}", field("title"), field("brand")))
        })
        .collect();
    // numbers in their own order, other ids by name
    items.sort_by_cached_key(|(id, _)| (id.parse::<u64>().unwrap_or(u64::MAX), id.clone()));
    Ok(items.into_iter().unzip())
}

/// The entries of a Python list of strings or numbers; `None` if it is none.
fn parse_list(text: &str) -> Option<Vec<String>> {
    let inner = text.trim().strip_prefix('[')?.strip_suffix(']')?.trim();
    if inner.is_empty() {
        return Some(Vec::new());
    }
    let bare = |entry: &str| entry.trim().trim_matches(['\'', '"']).to_owned();
    let entries: Vec<String> = inner.split(',').map(bare).collect();
    entries.iter().all(|entry| !entry.is_empty()).then_some(entries)
}

/// A user's own data: `events` with columns `user`, `item`, `time` (any order, CSV, TSV, JSONL or
/// Parquet), and, if given, `items` with columns `item` and `text`. Items with neither event nor
/// text don't exist; users are kept whatever their length.
///
/// # Errors
/// Malformed files with row and column; an event of an item that `items` does not list.
pub fn read_events(events: &Path, items: Option<&Path>, repeats: bool) -> Result<Dataset> {
    let table = Table::read(events, &ReadOptions::select(&["user", "item", "time"]))?;
    let (users, names) = (table.column("user")?.non_empty()?, table.column("item")?.non_empty()?);
    let times = table.column("time")?.timestamps()?;
    let mut listed: BTreeMap<String, String> = BTreeMap::new();
    if let Some(path) = items {
        let table = Table::read(path, &ReadOptions::select(&["item", "text"]))?;
        let (ids, texts) = (table.column("item")?, table.column("text")?);
        for row in 0..table.len() {
            let id = ids.cell(row).non_empty()?;
            if listed.insert(id.to_owned(), texts.text(row).to_owned()).is_some() {
                return Err(ids.cell(row).error("an item that was not listed before"));
            }
        }
        check_listed(events, &names, &listed)?;
    } else {
        names.iter().for_each(|name| drop(listed.insert((*name).to_owned(), String::new())));
    }
    let (ids, texts): (Vec<String>, Vec<String>) = listed.into_iter().unzip();
    let number: HashMap<&str, u32> =
        ids.iter().enumerate().map(|(at, id)| (id.as_str(), at as u32)).collect();
    let mut order: Vec<usize> = (0..users.len()).collect();
    order.sort_by_key(|&row| (times[row], row));
    let mut sequences: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for row in order {
        if let Some(&item) = number.get(names[row]) {
            sequences.entry(users[row]).or_default().push(item);
        }
    }
    let (train, valid, test) = leave_one_out(sequences.into_values().collect());
    Ok(Dataset {
        name: events.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        ids,
        texts,
        train,
        valid,
        test,
        repeats,
        released: None,
        note: String::new(),
    })
}

/// Users of an event file in the order of [`read_events`]' sequences.
///
/// # Errors
/// A malformed file.
pub fn user_names(events: &Path) -> Result<Vec<String>> {
    let table = Table::read(events, &ReadOptions::select(&["user", "item", "time"]))?;
    let names: std::collections::BTreeSet<&str> =
        table.column("user")?.non_empty()?.into_iter().collect();
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// Refuses the first event of an item that the item file lacks.
fn check_listed(events: &Path, names: &[&str], listed: &BTreeMap<String, String>) -> Result<()> {
    match names.iter().position(|name| !listed.contains_key(*name)) {
        None => Ok(()),
        Some(row) => Err(Error::data(
            format!("item {:?} of event {}", names[row], row + 1),
            format!("one of the {} items of the item file", listed.len()),
        )
        .in_file(events)),
    }
}

/// A world whose rule is known: items belong to `clusters` by number, the next item stays in the
/// cluster of the last one with probability 0.8, and items are drawn by a Zipf law inside a
/// cluster, so popularity is planted. Texts name the cluster.
pub fn synthetic(items: usize, users: usize, clusters: usize, seed: Seed) -> Dataset {
    let mut stream = seed.stream("synthetic");
    let members = |cluster: usize| (cluster..items).step_by(clusters).collect::<Vec<_>>();
    let groups: Vec<Vec<usize>> = (0..clusters).map(members).collect();
    let sequences = (0..users)
        .map(|_| {
            let mut cluster = stream.below(clusters);
            let length = 4 + stream.below(6);
            (0..length)
                .map(|_| {
                    if stream.chance(0.2) {
                        cluster = stream.below(clusters);
                    }
                    let group = &groups[cluster];
                    let weights: Vec<f64> =
                        (0..group.len()).map(|rank| 1.0 / (rank + 1) as f64).collect();
                    group[stream.weighted(&weights)] as u32
                })
                .collect()
        })
        .collect();
    let (train, valid, test) = leave_one_out(sequences);
    Dataset {
        name: "synthetic".into(),
        ids: (0..items).map(|item| item.to_string()).collect(),
        texts: (0..items).map(|item| format!("cluster {} item {item}", item % clusters)).collect(),
        train,
        valid,
        test,
        repeats: true,
        released: None,
        note: "Synthetic.".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_python_are_read() {
        assert_eq!(parse_list("['3', \"17\"]"), Some(vec!["3".into(), "17".into()]));
        assert_eq!(parse_list("[]"), Some(vec![]));
        assert_eq!(parse_list("[3, ]"), None);
        assert_eq!(parse_list("3, 4"), None);
    }

    #[test]
    fn the_last_two_items_are_held_out() {
        let (train, valid, test) = leave_one_out(vec![vec![1, 2, 3, 4], vec![5, 6]]);
        assert_eq!(train, [vec![1, 2], vec![5, 6]]);
        assert_eq!(valid, [Case { user: Some(0), history: vec![1, 2], target: 3 }]);
        assert_eq!(test, [Case { user: Some(0), history: vec![1, 2, 3], target: 4 }]);
    }
}
