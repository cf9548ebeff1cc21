//! Semantic IDs: a table of codes per item and level, its audit, its files.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use common::data::atomic_write;
use common::metrics::gini;
use common::{Error, Result};
use serde::{Deserialize, Serialize};

/// Codes of every item. All rows have the same number of levels; codes are numbered from 0 per
/// level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SidTable {
    levels: usize,
    codes: Vec<u32>,
    sizes: Vec<usize>,
}

impl SidTable {
    /// A table from rows of `levels` codes each.
    ///
    /// # Errors
    /// Rows of different lengths, or none.
    pub fn new(rows: &[Vec<u32>]) -> Result<Self> {
        let levels = rows.first().map_or(0, Vec::len);
        if levels == 0 {
            return Err(Error::data("no item with a semantic ID", "at least one with one level"));
        }
        if let Some(at) = rows.iter().position(|row| row.len() != levels) {
            return Err(Error::data(
                format!("{} levels at item {at}", rows[at].len()),
                format!("{levels} levels as at item 0"),
            ));
        }
        let codes: Vec<u32> = rows.iter().flatten().copied().collect();
        Ok(Self::from_codes(codes, levels))
    }

    fn from_codes(codes: Vec<u32>, levels: usize) -> Self {
        let mut sizes = vec![0; levels];
        for row in codes.chunks_exact(levels) {
            for (size, &code) in sizes.iter_mut().zip(row) {
                *size = (*size).max(code as usize + 1);
            }
        }
        Self { levels, codes, sizes }
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.codes.len() / self.levels
    }

    /// Number of levels.
    pub fn levels(&self) -> usize {
        self.levels
    }

    /// Per level, largest code + 1.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// The codes of one item.
    pub fn row(&self, item: usize) -> &[u32] {
        &self.codes[item * self.levels..(item + 1) * self.levels]
    }

    /// All rows in item order.
    pub fn rows(&self) -> impl Iterator<Item = &[u32]> {
        self.codes.chunks_exact(self.levels)
    }

    /// The table with one code replaced per (item, level, code).
    pub fn replaced(&self, changes: impl IntoIterator<Item = (usize, usize, u32)>) -> Self {
        let mut codes = self.codes.clone();
        for (item, level, code) in changes {
            codes[item * self.levels + level] = code;
        }
        Self::from_codes(codes, self.levels)
    }

    /// Number of different semantic IDs.
    pub fn unique(&self) -> usize {
        self.rows().collect::<HashSet<_>>().len()
    }

    /// Collision policy "dedup token" (TIGER): one more level with a running number among the items
    /// of equal codes, 0 for the one with most training interactions, so that the number says
    /// something that a model can learn. Left as it is when all codes differ.
    pub fn deduplicated(&self, counts: &[u64]) -> Self {
        if self.unique() == self.items() {
            return self.clone();
        }
        let mut order: Vec<usize> = (0..self.items()).collect();
        order.sort_by_key(|&item| std::cmp::Reverse(counts[item]));
        let mut seen: HashMap<&[u32], u32> = HashMap::new();
        let mut numbers = vec![0; self.items()];
        for item in order {
            let next = seen.entry(self.row(item)).or_insert(0);
            numbers[item] = *next;
            *next += 1;
        }
        let rows = self.rows().zip(numbers);
        let codes = rows.flat_map(|(row, number)| row.iter().copied().chain([number])).collect();
        Self::from_codes(codes, self.levels + 1)
    }

    /// Interactions that pile up on each code of a level, P(c) (Eq. 3).
    pub fn token_popularity(&self, level: usize, counts: &[u64]) -> Vec<u64> {
        let mut popularity = vec![0; self.sizes[level]];
        for (row, count) in self.rows().zip(counts) {
            popularity[row[level] as usize] += count;
        }
        popularity
    }

    /// Whether each code of a level belongs to an item.
    pub fn used(&self, level: usize) -> Vec<bool> {
        let mut used = vec![false; self.sizes[level]];
        self.rows().for_each(|row| used[row[level] as usize] = true);
        used
    }

    /// Reads MiniOneRec's `index.json`: item id → list of `<a_236>`, `<b_231>`, …; the letter names
    /// the level. Plain numbers are taken too.
    ///
    /// # Errors
    /// What is not such a map, with the item.
    pub fn read_index(path: &Path) -> Result<(Vec<String>, Self)> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let map: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&text).map_err(|error| {
                Error::data(error.to_string(), "an object of item id → list of codes").in_file(path)
            })?;
        let mut rows: Vec<(String, Vec<u32>)> = Vec::with_capacity(map.len());
        for (id, value) in map {
            let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let row: Option<Vec<u32>> = list.iter().map(code_of).collect();
            match row.filter(|row| !row.is_empty()) {
                Some(row) => rows.push((id, row)),
                None => {
                    return Err(Error::data(
                        format!("item {id}: {value}"),
                        "a list of codes such as [\"<a_12>\", \"<b_7>\"] or [12, 7]",
                    )
                    .in_file(path));
                }
            }
        }
        rows.sort_by_cached_key(|(id, _)| (id.parse::<u64>().unwrap_or(u64::MAX), id.clone()));
        let (ids, rows): (Vec<String>, Vec<Vec<u32>>) = rows.into_iter().unzip();
        let table = Self::new(&rows).map_err(|error| error.in_file(path))?;
        Ok((ids, table))
    }

    /// The semantic IDs of `ids`, in that order, from a file of [`SidTable::read_index`].
    ///
    /// # Errors
    /// Those of reading; an item without a semantic ID.
    pub fn read_for(path: &Path, ids: &[String]) -> Result<Self> {
        let (coded, table) = Self::read_index(path)?;
        let number: HashMap<&str, usize> =
            coded.iter().enumerate().map(|(at, id)| (id.as_str(), at)).collect();
        let row = |id: &String| match number.get(id.as_str()) {
            Some(&at) => Ok(table.row(at).to_vec()),
            None => {
                Err(Error::data(format!("no semantic ID of item {id:?}"), "one for every item")
                    .in_file(path))
            }
        };
        Self::new(&ids.iter().map(row).collect::<Result<Vec<_>>>()?)
    }

    /// Hash of the codes.
    pub fn fingerprint(&self) -> String {
        let bytes: Vec<u8> = self.codes.iter().flat_map(|code| code.to_le_bytes()).collect();
        common::run::hash8(&bytes)
    }

    /// Writes [`SidTable::read_index`]'s form.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_index(&self, path: &Path, ids: &[String]) -> Result<()> {
        let mut text = String::from("{");
        for (at, (id, row)) in ids.iter().zip(self.rows()).enumerate() {
            let codes: Vec<String> = row
                .iter()
                .enumerate()
                .map(|(level, code)| {
                    let letter = char::from(b'a' + (level % 26) as u8);
                    format!("\"<{letter}_{code}>\"")
                })
                .collect();
            let comma = if at == 0 { "" } else { ", " };
            let id = serde_json::Value::from(id.as_str());
            text.push_str(&format!("{comma}{id}: [{}]", codes.join(", ")));
        }
        text.push_str("}\n");
        atomic_write(path, text.as_bytes())
    }
}

/// 236 from `"<a_236>"`, `"236"` or `236`; codes above 2^20 are refused.
fn code_of(value: &serde_json::Value) -> Option<u32> {
    let number = match value {
        serde_json::Value::Number(number) => number.as_u64()?,
        serde_json::Value::String(text) => {
            let inner = text.trim_start_matches('<').trim_end_matches('>');
            inner.rsplit('_').next()?.parse().ok()?
        }
        _ => return None,
    };
    u32::try_from(number).ok().filter(|&code| code < 1 << 20)
}

/// One level of a code book under load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LevelAudit {
    /// From 0.
    pub level: usize,
    /// Codes that an item carries.
    pub used: usize,
    /// Largest code + 1.
    pub size: usize,
    /// `exp` of the entropy of the items' codes: how many codes are used as if evenly.
    pub perplexity: f64,
    /// Gini coefficient of P(c) over the used codes.
    pub gini: f64,
    /// Share of all interactions on the 5 % most popular codes.
    pub top5_share: f64,
    /// Interactions on the most popular code.
    pub largest: u64,
}

/// What `audit` reports on a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// Items in the table.
    pub items: usize,
    /// Different semantic IDs.
    pub unique: usize,
    /// Most items with one semantic ID.
    pub largest_collision: usize,
    /// Gini coefficient of the items' own interactions.
    pub item_gini: f64,
    /// Per level.
    pub levels: Vec<LevelAudit>,
}

/// Load, use and collisions of a table under training counts (one per item).
pub fn audit(table: &SidTable, counts: &[u64]) -> Audit {
    let mut same: HashMap<&[u32], usize> = HashMap::new();
    table.rows().for_each(|row| *same.entry(row).or_insert(0) += 1);
    let levels = (0..table.levels())
        .map(|level| {
            let used = table.used(level);
            let popularity = table.token_popularity(level, counts);
            let mut loads: Vec<u64> =
                popularity.iter().zip(&used).filter(|(_, used)| **used).map(|(p, _)| *p).collect();
            let carried = table.token_popularity(level, &vec![1; table.items()]);
            let shares: Vec<f64> =
                carried.iter().map(|&n| n as f64 / table.items() as f64).collect();
            let values: Vec<f64> = loads.iter().map(|&load| load as f64).collect();
            let total = values.iter().sum::<f64>();
            loads.sort_unstable_by(|a, b| b.cmp(a));
            let top = (loads.len() as f64 * 0.05).round().max(1.0) as usize;
            LevelAudit {
                level,
                used: loads.len(),
                size: table.sizes()[level],
                perplexity: common::metrics::entropy(&shares).exp(),
                gini: gini(&values),
                top5_share: loads.iter().take(top).sum::<u64>() as f64 / total.max(1.0),
                largest: loads.first().copied().unwrap_or(0),
            }
        })
        .collect();
    let values: Vec<f64> = counts.iter().map(|&count| count as f64).collect();
    Audit {
        items: table.items(),
        unique: same.len(),
        largest_collision: same.values().copied().max().unwrap_or(0),
        item_gini: gini(&values),
        levels,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn table() -> SidTable {
        SidTable::new(&[vec![0, 1], vec![0, 1], vec![2, 0], vec![0, 1]]).unwrap()
    }

    #[test]
    fn dedup_numbers_equal_codes() {
        let dedup = table().deduplicated(&[3, 5, 0, 3]);
        let last: Vec<u32> = dedup.rows().map(|row| row[2]).collect();
        assert_eq!(last, [1, 0, 0, 2]);
        assert_eq!((dedup.unique(), dedup.levels()), (4, 3));
        assert_eq!(dedup.deduplicated(&[0; 4]), dedup);
    }

    #[test]
    fn audit_by_hand() {
        let audit = audit(&table(), &[5, 1, 2, 0]);
        assert_eq!((audit.unique, audit.largest_collision), (2, 3));
        let level = &audit.levels[0];
        assert_eq!((level.used, level.size, level.largest), (2, 3, 6));
        // loads 6 and 2: (2 · (1 · 2 + 2 · 6) / (2 · 8)) - 3/2
        assert!((level.gini - 0.25).abs() < 1e-12);
        assert!((level.top5_share - 0.75).abs() < 1e-12);
    }

    #[test]
    fn an_index_reads_what_it_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.json");
        let ids: Vec<String> = ["2", "10", "x", "y"].map(str::to_owned).to_vec();
        table().write_index(&path, &ids).unwrap();
        assert_eq!(SidTable::read_index(&path).unwrap(), (ids, table()));
        for bad in ["[]", "{\"1\": \"<a_1>\"}", "{\"1\": [\"<a_x>\"]}", "{\"1\": [1], \"2\": []}"] {
            std::fs::write(&path, bad).unwrap();
            let error = SidTable::read_index(&path).unwrap_err();
            assert_eq!(error.exit_code(), 3, "{bad}");
            assert!(error.to_string().contains("index.json"), "{error}");
        }
    }
}
