//! Ad catalogues, impression logs and user files (CSV, TSV, JSONL, Parquet) with errors that name
//! row and column.

use std::collections::HashMap;
use std::path::Path;

use common::data::{Cell, Duplicates, ReadOptions, Table};
use common::{Error, Result};
use ndarray::Array2;

use super::{Ad, Dataset, Impressions, Kind, Schema};
use crate::config::InputConfig;

/// Reads an ad catalogue: id, title and, where there, description, campaign, start and image.
///
/// # Errors
/// Data errors with row and column: a repeated or empty id, an ad without any text, a start that is
/// no time.
pub fn read_ads(path: &Path, input: &InputConfig) -> Result<Vec<Ad>> {
    let duplicates = Duplicates::Refuse(vec![input.ad_id.clone()]);
    let table = Table::read(path, &ReadOptions { duplicates, ..ReadOptions::default() })?;
    let id = table.column(&input.ad_id)?;
    let title = table.column(&input.title)?;
    let optional =
        |name: &str| if table.has_column(name) { Some(table.column(name)) } else { None };
    let description = optional(&input.description).transpose()?;
    let campaign = optional(&input.campaign).transpose()?;
    let start = optional(&input.start).transpose()?;
    let image = optional(&input.image).transpose()?;
    let folder = path.parent().unwrap_or(Path::new(""));
    (0..table.len())
        .map(|row| {
            let text = |column: Option<common::data::Column<'_>>| {
                column.map_or("", |column| column.text(row)).trim().to_owned()
            };
            let filled = |text: String| if text.is_empty() { None } else { Some(text) };
            let description = text(description);
            if description.is_empty() {
                title.cell(row).non_empty()?;
            }
            Ok(Ad {
                id: id.cell(row).non_empty()?.to_owned(),
                title: title.text(row).trim().to_owned(),
                description,
                campaign: filled(text(campaign)),
                start: match start.map(|column| column.cell(row)) {
                    Some(cell) if !cell.text.trim().is_empty() => Some(cell.timestamp()?),
                    _ => None,
                },
                image: filled(text(image)).map(|name| folder.join(name)),
            })
        })
        .collect()
}

/// Reads an impression log: ad, click and one column per feature of the schema; user and time where
/// there. An ad's start is its first impression where the catalogue gives none.
///
/// # Errors
/// Data errors with row and column: an ad that the catalogue does not hold, a click that is neither
/// true nor false, a binary feature other than 0 or 1, a number that is not finite.
pub fn read_impressions(
    path: &Path,
    input: &InputConfig,
    schema: &Schema,
    mut ads: Vec<Ad>,
) -> Result<Dataset> {
    let table = Table::read(path, &ReadOptions::default())?;
    let ad = table.column(&input.impression_ad)?;
    let clicked = table.column(&input.clicked)?.bools()?;
    let by_id: HashMap<String, usize> =
        ads.iter().enumerate().map(|(index, ad)| (ad.id.clone(), index)).collect();
    let mut impressions = Impressions { clicked, ..Impressions::default() };
    for row in 0..table.len() {
        let cell = ad.cell(row);
        let index = by_id.get(cell.non_empty()?.trim());
        let index = index.ok_or_else(|| cell.error("an ad id of the catalogue"))?;
        impressions.ad.push(*index);
    }
    let mut users: HashMap<&str, usize> = HashMap::new();
    impressions.user = match table.has_column(&input.user) {
        true => {
            let names = table.column(&input.user)?.non_empty()?;
            names
                .into_iter()
                .map(|name| {
                    let next = users.len();
                    *users.entry(name).or_insert(next)
                })
                .collect()
        }
        // Without a user column every row is a user of its own.
        false => (0..table.len()).collect(),
    };
    let known_users = if users.is_empty() { table.len() } else { users.len() };
    impressions.time = match table.has_column(&input.time) {
        true => {
            let times = table.column(&input.time)?.timestamps()?;
            for (row, time) in times.iter().enumerate() {
                let start = &mut ads[impressions.ad[row]].start;
                if start.is_none_or(|known| *time < known) {
                    *start = Some(*time);
                }
            }
            times
        }
        false => vec![0; table.len()],
    };
    impressions.features = features(&table, schema)?;
    impressions.liked = vec![Vec::new(); table.len()];
    Ok(Dataset {
        name: path.display().to_string(),
        schema: schema.clone(),
        expert: vec![Vec::new(); ads.len()],
        ads,
        impressions,
        users: known_users,
    })
}

/// Users to score: ids and standardised features.
#[derive(Debug, Clone)]
pub struct Users {
    /// Ids in file order.
    pub ids: Vec<String>,
    /// (users, features)
    pub features: Array2<f32>,
}

/// Reads users: an id column and one column per feature.
///
/// # Errors
/// As [`read_impressions`]; a repeated user id.
pub fn read_users(path: &Path, input: &InputConfig, schema: &Schema) -> Result<Users> {
    let duplicates = Duplicates::Refuse(vec![input.user.clone()]);
    let table = Table::read(path, &ReadOptions { duplicates, ..ReadOptions::default() })?;
    let ids = table.column(&input.user)?.non_empty()?;
    let ids = ids.into_iter().map(str::to_owned).collect();
    Ok(Users { ids, features: features(&table, schema)? })
}

fn features(table: &Table, schema: &Schema) -> Result<Array2<f32>> {
    let mut out = Array2::zeros((table.len(), schema.len()));
    for (index, feature) in schema.features.iter().enumerate() {
        let column = table.column(&feature.name)?;
        for row in 0..table.len() {
            let cell = column.cell(row);
            let raw = value(&cell, feature.kind)?;
            out[[row, index]] = schema.standardise(index, raw) as f32;
        }
    }
    Ok(out)
}

fn value(cell: &Cell<'_>, kind: Kind) -> Result<f64, Error> {
    match kind {
        Kind::Binary => Ok(f64::from(u8::from(cell.bool()?))),
        Kind::Real => cell.f64(),
    }
}
