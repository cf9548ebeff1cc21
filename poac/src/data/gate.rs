//! The gate of Algorithm 3: does a prompt name an abstract concept?

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::data::Table;
use common::{Error, Result};

const LIST: &str = include_str!("concepts.txt");

/// Ratings up to this value (1 = abstract … 5 = concrete) count as abstract.
const MOST_CONCRETE: f64 = 3.0;

/// Decides which words are abstract: a list of 441 words in the repository, or human concreteness
/// ratings where the user gives a file of them.
#[derive(Debug, Clone)]
pub struct Gate {
    words: BTreeSet<String>,
    /// Rating by word; empty without a file.
    ratings: BTreeMap<String, f64>,
}

impl Default for Gate {
    fn default() -> Self {
        let words = LIST.lines().map(str::to_owned).collect();
        Self { words, ratings: BTreeMap::new() }
    }
}

impl Gate {
    /// The list and the ratings of a CSV file with columns `Word` and `Concreteness` (1 to 5), such
    /// as Brysbaert et al. 2014; a rated word is judged by its rating.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Data`] with row and column.
    pub fn with_ratings(path: &Path) -> Result<Self> {
        let table = Table::read(path, &common::data::ReadOptions::default())?;
        let words = table.column("Word")?.non_empty()?;
        let values = table.column("Concreteness")?.f64s()?;
        let mut gate = Self::default();
        for (index, (word, value)) in words.into_iter().zip(values).enumerate() {
            if !(1.0..=5.0).contains(&value) {
                let row = table.row_number(index);
                return Err(Error::data(
                    format!("Concreteness {value} in row {row}"),
                    "a rating from 1 (abstract) to 5 (concrete)",
                )
                .in_file(path));
            }
            gate.ratings.insert(word.to_lowercase(), value);
        }
        Ok(gate)
    }

    /// Whether the word (or short phrase) is abstract; case and spaces around it do not matter.
    pub fn is_abstract(&self, word: &str) -> bool {
        let word = word.trim().to_lowercase();
        match self.ratings.get(&word) {
            Some(&rating) => rating <= MOST_CONCRETE,
            None => self.words.contains(&word),
        }
    }

    /// The abstract words of a prompt in reading order, each once. Two-word phrases win over their
    /// words.
    pub fn abstract_words(&self, prompt: &str) -> Vec<String> {
        let words: Vec<String> = prompt
            .split(|c: char| !(c.is_alphabetic() || c == '-' || c == '\''))
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect();
        let mut found: Vec<String> = Vec::new();
        let mut at = 0;
        while at < words.len() {
            let pair = words.get(at + 1).map(|next| format!("{} {next}", words[at]));
            let (hit, taken) = match pair {
                Some(pair) if self.is_abstract(&pair) => (Some(pair), 2),
                _ if self.is_abstract(&words[at]) => (Some(words[at].clone()), 1),
                _ => (None, 1),
            };
            if let Some(word) = hit
                && !found.contains(&word)
            {
                found.push(word);
            }
            at += taken;
        }
        found
    }
}
