//! A user's own tables: events with a behaviour column, items with title, text and picture.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use common::data::{ReadOptions, Table};
use common::{Error, Result};

use super::{Dataset, Item, Step};

/// Columns and behaviours of the tables; see the config's `input`.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    /// Events: user id.
    pub user: &'a str,
    /// Events and items: item id.
    pub item: &'a str,
    /// Events: behaviour.
    pub behaviour: &'a str,
    /// Events: time.
    pub time: &'a str,
    /// Items: title.
    pub title: &'a str,
    /// Items: text.
    pub text: &'a str,
    /// Items: picture.
    pub image: &'a str,
    /// Behaviours in order; empty = those found, sorted.
    pub behaviours: &'a [String],
    /// Behaviour to predict; empty = any.
    pub target: &'a str,
}

/// Reads the items. A text column that is absent gives the titles as texts, an absent picture
/// column no pictures; an empty cell is an item without that modality.
///
/// # Errors
/// [`Error::Data`] with file, row and column.
pub fn items(path: &Path, columns: &Columns<'_>) -> Result<Vec<Item>> {
    let table = Table::read(path, &ReadOptions::default())?;
    let (ids, titles) = (table.column(columns.item)?, table.column(columns.title)?);
    let optional = |name: &str| {
        if table.has_column(name) { table.column(name).map(Some) } else { Ok(None) }
    };
    let (texts, images) = (optional(columns.text)?, optional(columns.image)?);
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut seen = HashMap::new();
    let mut items = Vec::with_capacity(table.len());
    for row in 0..table.len() {
        let id = ids.cell(row).non_empty()?.to_owned();
        if let Some(first) = seen.insert(id.clone(), table.row_number(row)) {
            return Err(ids.cell(row).error(format!("an item id that row {first} does not have")));
        }
        let title = titles.text(row).to_owned();
        let text = texts.map_or_else(|| title.clone(), |column| column.text(row).to_owned());
        let image = images.map(|column| column.text(row)).filter(|cell| !cell.trim().is_empty());
        items.push(Item { id, title, text, image: image.map(|cell| folder.join(cell)) });
    }
    if items.is_empty() {
        return Err(Error::data("no rows", "at least one item").in_file(path));
    }
    Ok(items)
}

/// Reads the events of `items` in order of time; among equal times the later row is later.
///
/// # Errors
/// [`Error::Data`] with file, row and column for an unknown item or behaviour, or a bad time.
pub fn events(path: &Path, items: Vec<Item>, columns: &Columns<'_>) -> Result<Dataset> {
    let names = [columns.user, columns.item, columns.behaviour, columns.time];
    let table = Table::read(path, &ReadOptions::select(&names))?;
    let (users, ids) = (table.column(columns.user)?, table.column(columns.item)?);
    let (kinds, times) = (table.column(columns.behaviour)?, table.column(columns.time)?);
    let mut behaviours: Vec<String> = columns.behaviours.to_vec();
    if behaviours.is_empty() {
        let found: BTreeSet<&str> = kinds.non_empty()?.into_iter().collect();
        behaviours = found.into_iter().map(str::to_owned).collect();
    }
    if table.is_empty() || behaviours.len() > 64 {
        let found = format!("{} rows with {} behaviours", table.len(), behaviours.len());
        return Err(Error::data(found, "events of 1 to 64 behaviours").in_file(path));
    }
    let target = match columns.target {
        "" => None,
        name => Some(behaviours.iter().position(|b| b == name).ok_or_else(|| {
            Error::usage(format!(
                "input.target = {name:?} is not a behaviour of the events; those are {}",
                behaviours.join(", ")
            ))
        })? as u32),
    };
    let item_of: HashMap<&str, u32> = items.iter().map(|item| item.id.as_str()).zip(0..).collect();
    let mut user_of: HashMap<&str, usize> = HashMap::new();
    let mut names = Vec::new();
    let mut rows: Vec<Vec<(i64, Step)>> = Vec::new();
    for row in 0..table.len() {
        let user = users.cell(row).non_empty()?;
        let &item = item_of
            .get(ids.cell(row).non_empty()?)
            .ok_or_else(|| ids.cell(row).error("an id of the items table"))?;
        let kind = kinds.cell(row).non_empty()?;
        let behaviour = behaviours.iter().position(|b| b == kind).ok_or_else(|| {
            kinds.cell(row).error(format!("one of the behaviours {}", behaviours.join(", ")))
        })? as u32;
        let time = times.cell(row).timestamp()?;
        let at = *user_of.entry(user).or_insert_with(|| {
            names.push(user.to_owned());
            rows.push(Vec::new());
            rows.len() - 1
        });
        rows[at].push((time, Step { item, behaviour }));
    }
    let sequences = rows
        .into_iter()
        .map(|mut events| {
            events.sort_by_key(|event| event.0);
            events.into_iter().map(|event| event.1).collect()
        })
        .collect();
    Ok(Dataset {
        name: path.display().to_string(),
        users: names,
        behaviours,
        target,
        sequences,
        links: Vec::new(),
        items,
    })
}
