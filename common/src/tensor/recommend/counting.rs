//! Baselines that count: popularity, first-order Markov chain, item-based nearest neighbours.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::check_items;
use crate::Result;

/// How often each item occurs in the training sequences.
#[derive(Debug, Clone)]
pub struct Popularity {
    counts: Vec<f32>,
}

impl Popularity {
    /// Counts `sequences` over `items` items.
    ///
    /// # Errors
    /// An item number that is not below `items`.
    pub fn fit(sequences: &[Vec<u32>], items: usize) -> Result<Self> {
        check_items(sequences.iter().map(Vec::as_slice), items)?;
        let mut counts = vec![0f32; items];
        sequences.iter().flatten().for_each(|&item| counts[item as usize] += 1.0);
        Ok(Self { counts })
    }

    /// The counts, one per item: the scores of every history.
    pub fn scores(&self) -> &[f32] {
        &self.counts
    }
}

/// First-order Markov chain: the score of item `j` after item `i` is how often `j` directly followed
/// `i`. Items that never did are ordered by popularity below all that did.
#[derive(Debug, Clone)]
pub struct Markov {
    next: Vec<BTreeMap<u32, f32>>,
    /// Share of all events, in `[0, 1)`.
    popularity: Vec<f32>,
}

impl Markov {
    /// Counts the transitions of `sequences` over `items` items.
    ///
    /// # Errors
    /// An item number that is not below `items`.
    pub fn fit(sequences: &[Vec<u32>], items: usize) -> Result<Self> {
        let counts = Popularity::fit(sequences, items)?.counts;
        let mut next = vec![BTreeMap::new(); items];
        for pair in sequences.iter().flat_map(|sequence| sequence.windows(2)) {
            *next[pair[0] as usize].entry(pair[1]).or_insert(0.0) += 1.0;
        }
        let total = counts.iter().sum::<f32>() + 1.0;
        Ok(Self { next, popularity: counts.iter().map(|count| count / total).collect() })
    }

    /// One score per item: transitions from the history's last item plus the share of all events.
    /// An empty history, or a last item that is not among the items, gets the shares alone.
    pub fn scores(&self, history: &[u32]) -> Vec<f32> {
        let mut scores = self.popularity.clone();
        if let Some(followers) = history.last().and_then(|&last| self.next.get(last as usize)) {
            followers.iter().for_each(|(&item, count)| scores[item as usize] += count);
        }
        scores
    }
}

/// | option | default | purpose | range |
/// |---|---|---|---|
/// | `neighbours` | 100 | neighbours kept per item, the nearest first | ≥ 1 |
/// | `shrinkage` | 10 | added to the norm: distrusts items with few users | ≥ 0 |
/// | `recent` | 10 | latest items of a history that vote; 0 = all | |
/// | `decay` | 0.8 | weight of an item relative to the one after it | (0, 1] |
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ItemKnnOptions {
    /// See the table.
    pub neighbours: usize,
    /// See the table.
    pub shrinkage: f64,
    /// See the table.
    pub recent: usize,
    /// See the table.
    pub decay: f64,
}

impl Default for ItemKnnOptions {
    fn default() -> Self {
        Self { neighbours: 100, shrinkage: 10.0, recent: 10, decay: 0.8 }
    }
}

/// Item-based nearest neighbours ([Sarwar et al. 2001](https://doi.org/10.1145/371920.372071)) with
/// the cosine of the item's users: `|U_i ∩ U_j| / (√(|U_i| |U_j|) + shrinkage)`.
#[derive(Debug, Clone)]
pub struct ItemKnn {
    neighbours: Vec<Vec<(u32, f32)>>,
    options: ItemKnnOptions,
}

impl ItemKnn {
    /// Neighbours of every item; takes time in proportion to the sum of squared sequence lengths.
    ///
    /// # Errors
    /// An item number that is not below `items`.
    pub fn fit(sequences: &[Vec<u32>], items: usize, options: ItemKnnOptions) -> Result<Self> {
        check_items(sequences.iter().map(Vec::as_slice), items)?;
        let distinct: Vec<Vec<u32>> = sequences
            .iter()
            .map(|sequence| {
                let mut items = sequence.clone();
                items.sort_unstable();
                items.dedup();
                items
            })
            .collect();
        let mut users: Vec<Vec<u32>> = vec![Vec::new(); items];
        for (user, items) in distinct.iter().enumerate() {
            items.iter().for_each(|&item| users[item as usize].push(user as u32));
        }
        let mut shared = vec![0u32; items];
        let neighbours = (0..items)
            .map(|item| {
                let mut touched = Vec::new();
                for &user in &users[item] {
                    for &other in &distinct[user as usize] {
                        if shared[other as usize] == 0 {
                            touched.push(other);
                        }
                        shared[other as usize] += 1;
                    }
                }
                let mut near: Vec<(u32, f32)> = touched
                    .iter()
                    .filter(|&&other| other as usize != item)
                    .map(|&other| {
                        let sizes = users[item].len() as f64 * users[other as usize].len() as f64;
                        let similarity =
                            f64::from(shared[other as usize]) / (sizes.sqrt() + options.shrinkage);
                        (other, similarity as f32)
                    })
                    .collect();
                touched.iter().for_each(|&other| shared[other as usize] = 0);
                near.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                near.truncate(options.neighbours);
                near
            })
            .collect();
        Ok(Self { neighbours, options })
    }

    /// One score per item: the similarities to the latest items of `history`, older ones weighted
    /// by `decay` per step. Items that the model does not know don't vote.
    pub fn scores(&self, history: &[u32]) -> Vec<f32> {
        let mut scores = vec![0f32; self.neighbours.len()];
        let recent = if self.options.recent == 0 { history.len() } else { self.options.recent };
        let mut weight = 1.0;
        for &item in history.iter().rev().take(recent) {
            for &(other, similarity) in self.neighbours.get(item as usize).into_iter().flatten() {
                scores[other as usize] += weight as f32 * similarity;
            }
            weight *= self.options.decay;
        }
        scores
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sequences() -> Vec<Vec<u32>> {
        vec![vec![0, 1, 2], vec![0, 1], vec![1, 0, 2, 2]]
    }

    #[test]
    fn markov_by_hand() {
        // 0→1 twice, 1→2 once, 1→0 once, 0→2 once, 2→2 once; counts 3, 3, 3, 0 of 9 events
        let markov = Markov::fit(&sequences(), 4).unwrap();
        assert_eq!(markov.scores(&[1, 0]), [0.3, 2.3, 1.3, 0.0]);
        assert_eq!(markov.scores(&[3]), [0.3, 0.3, 0.3, 0.0]);
        assert_eq!(markov.scores(&[]), [0.3, 0.3, 0.3, 0.0]);
        assert_eq!(Popularity::fit(&sequences(), 4).unwrap().scores(), [3.0, 3.0, 3.0, 0.0]);
    }

    #[test]
    fn neighbours_by_hand() {
        // users of 0: {a, b, c}, of 1: {a, b, c}, of 2: {a, c}
        let options = ItemKnnOptions { neighbours: 2, shrinkage: 0.0, recent: 2, decay: 0.5 };
        let knn = ItemKnn::fit(&sequences(), 4, options).unwrap();
        let (full, half) = (1.0, (2.0 / 6f64.sqrt()) as f32);
        assert_eq!(knn.scores(&[2]), [half, half, 0.0, 0.0]);
        // item 2 votes first, item 0 with half the weight, the older 1 not at all
        assert_eq!(knn.scores(&[1, 0, 2]), [half, half + 0.5 * full, 0.5 * half, 0.0]);
        let shrunk = ItemKnnOptions { shrinkage: 1.0, ..options };
        let knn = ItemKnn::fit(&sequences(), 4, shrunk).unwrap();
        assert_eq!(knn.scores(&[0])[1], 0.75);
    }

    #[test]
    fn unknown_items_are_refused() {
        let error = Markov::fit(&sequences(), 2).unwrap_err().to_string();
        assert!(error.contains("item 2 at position 2 of sequence 0"), "{error}");
    }
}
