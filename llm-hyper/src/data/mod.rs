//! Ads, impressions and the feature schema: plain structs, loaders for a user's own files and for
//! the bench's data sets, and a generator whose true weights are known.

pub mod clothing;
pub mod files;
pub mod movielens;
pub(crate) mod schema;
pub mod synth;

use std::path::PathBuf;

use common::rng::Stream;
use ndarray::Array2;
use serde::{Deserialize, Serialize};

pub use schema::{Feature, Kind, Schema};

/// One advertisement (in the proxies: a film, a garment).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ad {
    /// Unique id.
    pub id: String,
    /// Headline.
    pub title: String,
    /// Further text; an image may enter as its caption here.
    pub description: String,
    /// Ads of one campaign are near-duplicates: none demonstrates another.
    pub campaign: Option<String>,
    /// Seconds since 1970 when the ad started; later ads never demonstrate earlier ones.
    pub start: Option<i64>,
    /// An image file, shown to endpoints that see.
    pub image: Option<PathBuf>,
}

impl Ad {
    /// Title and description as one line without control characters.
    pub fn text(&self) -> String {
        let both = format!("{}. {}", self.title.trim(), self.description.trim());
        let line: String = both.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        line.trim_matches(|c: char| c == '.' || c.is_whitespace()).to_owned()
    }
}

/// Who saw which ad, with the user's features at that moment. All vectors have one entry per row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Impressions {
    /// Index of the ad.
    pub ad: Vec<usize>,
    /// Index of the user.
    pub user: Vec<usize>,
    /// Seconds since 1970.
    pub time: Vec<i64>,
    /// Whether the user clicked.
    pub clicked: Vec<bool>,
    /// (rows, features) as the schema standardises them.
    pub features: Array2<f32>,
    /// Indices of ads that the user liked before, newest last; empty where unknown.
    pub liked: Vec<Vec<u32>>,
}

impl Impressions {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ad.len()
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.ad.is_empty()
    }

    /// Features of some rows as f64.
    pub fn rows(&self, rows: &[usize]) -> Array2<f64> {
        let width = self.features.ncols();
        let mut out = Array2::zeros((rows.len(), width));
        for (mut to, &row) in out.rows_mut().into_iter().zip(rows) {
            to.iter_mut().zip(self.features.row(row)).for_each(|(to, x)| *to = f64::from(*x));
        }
        out
    }

    /// Click flags of some rows.
    pub fn labels(&self, rows: &[usize]) -> Vec<bool> {
        rows.iter().map(|&row| self.clicked[row]).collect()
    }
}

/// Ads, impressions and what the features mean.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Name for tables.
    pub name: String,
    /// The features.
    pub schema: Schema,
    /// All ads.
    pub ads: Vec<Ad>,
    /// All impressions.
    pub impressions: Impressions,
    /// Number of users.
    pub users: usize,
    /// For each ad, the features that a person who reads its text would call decisive; empty when
    /// nobody said.
    pub expert: Vec<Vec<usize>>,
}

impl Dataset {
    /// Row numbers of every ad's impressions for which `keep` holds, by ad.
    pub fn rows_by_ad(&self, keep: impl Fn(usize) -> bool) -> Vec<Vec<usize>> {
        let mut rows = vec![Vec::new(); self.ads.len()];
        for row in 0..self.impressions.len() {
            if keep(row) {
                rows[self.impressions.ad[row]].push(row);
            }
        }
        rows
    }
}

/// Which ads are cold and which users are held out.
#[derive(Debug, Clone, PartialEq)]
pub struct ColdSplit {
    /// Ads with history, whose weights are trained.
    pub retired: Vec<usize>,
    /// Ads without history, ascending.
    pub active: Vec<usize>,
    /// Per user: true when all evaluation is on this user and no training.
    pub held_out: Vec<bool>,
}

impl ColdSplit {
    /// Holds out `share` of the users at random.
    pub fn new(
        retired: Vec<usize>,
        active: Vec<usize>,
        users: usize,
        share: f64,
        stream: &mut Stream,
    ) -> Self {
        let mut held_out = vec![false; users];
        let count = (users as f64 * share).round() as usize;
        for user in stream.sample(users, count) {
            held_out[user] = true;
        }
        Self { retired, active, held_out }
    }
}
