//! Interactions from MovieLens and from a user's own table.

use std::collections::BTreeMap;
use std::path::Path;

use common::data::movielens::MovieLens;
use common::data::{ReadOptions, Table};
use common::{Error, Result};

use super::{Event, Interactions, Item};

/// MovieLens-100k: 4 stars and more are liked; titles as RecBole writes them.
pub fn from_movielens(source: &MovieLens) -> Interactions {
    let mut histories = vec![Vec::new(); source.users.len()];
    for rating in &source.ratings {
        histories[rating.user as usize]
            .push(Event { item: rating.movie, liked: rating.stars >= 4 });
    }
    let item = |movie: &common::data::movielens::Movie| Item {
        id: movie.id.to_string(),
        title: movie.title.clone(),
        topics: movie.genres.clone(),
    };
    Interactions {
        users: source.users.iter().map(|user| user.id.to_string()).collect(),
        items: source.movies.iter().map(item).collect(),
        histories,
    }
}

/// Reads a table (CSV, TSV, JSONL or Parquet) with the columns `user`, `item`, `title`, `time`
/// and either `liked` (true or false) or `rating` (liked from `threshold` upwards); `topics`, split
/// at `|`, is optional. Users and items are numbered by id.
///
/// # Errors
/// [`Error::Data`] with file, row and column; also for a user without a title, two titles of one
/// item, fewer than 3 users.
pub fn read_interactions(path: &Path, threshold: f64) -> Result<Interactions> {
    let table = Table::read(path, &ReadOptions::default())?;
    let required = |name: &str| table.column(name);
    let (users, items) = (required("user")?, required("item")?);
    let (titles, times) = (required("title")?, required("time")?);
    let liked = table.has_column("liked").then(|| table.column("liked")).transpose()?;
    let rating = match &liked {
        Some(_) => None,
        None => Some(required("rating")?),
    };
    let topics = table.has_column("topics").then(|| table.column("topics")).transpose()?;
    let mut known: BTreeMap<&str, Item> = BTreeMap::new();
    let mut events: BTreeMap<&str, Vec<(i64, usize, &str, bool)>> = BTreeMap::new();
    for row in 0..table.len() {
        let item = items.cell(row).non_empty()?;
        let title = titles.cell(row).non_empty()?;
        let split = |text: &str| {
            text.split('|').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect()
        };
        let topics = topics.as_ref().map_or_else(Vec::new, |column| split(column.text(row)));
        let entry = known.entry(item).or_insert_with(|| Item {
            id: item.to_owned(),
            title: title.to_owned(),
            topics,
        });
        if entry.title != title {
            let expected = format!("the title {:?} that item {item} has above", entry.title);
            return Err(titles.cell(row).error(expected));
        }
        let yes = match (&liked, &rating) {
            (Some(column), _) => column.cell(row).bool()?,
            (None, Some(column)) => column.cell(row).f64()? >= threshold,
            (None, None) => return Err(Error::Bug("neither liked nor rating".into())),
        };
        let time = times.cell(row).timestamp()?;
        events.entry(users.cell(row).non_empty()?).or_default().push((time, row, item, yes));
    }
    if events.len() < 3 {
        return Err(Error::data(format!("{} users", events.len()), "at least 3").in_file(path));
    }
    let numbers: BTreeMap<&str, u32> = known.keys().copied().zip(0..).collect();
    let mut histories = Vec::new();
    let ids = events.keys().map(|&user| user.to_owned()).collect();
    for mut list in events.into_values() {
        list.sort_unstable_by_key(|&(time, row, ..)| (time, row));
        let event = |(_, _, item, liked)| Event { item: numbers[item], liked };
        histories.push(list.into_iter().map(event).collect());
    }
    Ok(Interactions { users: ids, items: known.into_values().collect(), histories })
}
