//! Workers that agree more than their accuracies explain: near-copies of each other.
//!
//! Two workers with independent errors agree with probability
//! e_ij = w_i w_j + (1 − w_i)(1 − w_j) / (L − 1). The excess (a_ij − e_ij) / (1 − e_ij) is 0 for
//! independent workers and 1 for copies, a chance-corrected agreement like Cohen's kappa.

use std::collections::HashMap;

use crate::votes::Votes;

/// Excess counts only above this many standard errors of the observed agreement.
const STANDARD_ERRORS: f64 = 3.0;

/// How often a pair of workers met on an item and how often they agreed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PairCount {
    /// Items with votes of both.
    pub items: f64,
    /// Of these, items with the same label.
    pub agreed: f64,
}

/// Counts per pair (i < j) of workers.
pub type PairCounts = HashMap<(u32, u32), PairCount>;

/// A pair of workers and how much they agree.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// First worker.
    pub first: usize,
    /// Second worker, above `first`.
    pub second: usize,
    /// Common items.
    pub items: usize,
    /// Share of common items with the same label.
    pub agreement: f64,
    /// e_ij: the agreement that independent errors would give.
    pub expected: f64,
    /// (agreement − expected) / (1 − expected), at most 1; negative for workers that differ.
    pub excess: f64,
    /// The excess lies above 3 standard errors: near-copies.
    pub significant: bool,
}

/// Counts every pair that meets; Σ_j n_j² steps.
pub fn pair_counts(votes: &Votes) -> PairCounts {
    let mut counts = PairCounts::new();
    for item in 0..votes.items.len() {
        let all = votes.of(item);
        for (at, (i, a)) in all.clone().enumerate() {
            for (j, b) in all.clone().skip(at + 1).filter(|&(j, _)| j != i) {
                let pair = counts.entry((i.min(j) as u32, i.max(j) as u32)).or_default();
                pair.items += 1.0;
                pair.agreed += f64::from(u8::from(a == b));
            }
        }
    }
    counts
}

/// The pair statistics under accuracies `w` and `labels` labels, in order of (first, second);
/// pairs with an unknown accuracy are left out.
pub fn pairs(counts: &PairCounts, accuracy: &[Option<f64>], labels: usize) -> Vec<Pair> {
    let others = labels.saturating_sub(1).max(1) as f64;
    let mut keys: Vec<_> = counts.iter().collect();
    keys.sort_by_key(|(key, _)| **key);
    keys.into_iter()
        .filter_map(|(&(i, j), count)| {
            let (first, second) = (i as usize, j as usize);
            let (w, u) = (accuracy[first]?, accuracy[second]?);
            let expected = (w * u + (1.0 - w) * (1.0 - u) / others).min(1.0 - 1e-9);
            let agreement = count.agreed / count.items;
            let error = (expected * (1.0 - expected) / count.items).sqrt();
            Some(Pair {
                first,
                second,
                items: count.items as usize,
                agreement,
                expected,
                excess: (agreement - expected) / (1.0 - expected),
                significant: agreement - expected > STANDARD_ERRORS * error,
            })
        })
        .collect()
}

/// d_i = 1 / (1 + Σ_j max(excess_ij, 0)) over significant pairs: c exact copies share one vote.
pub fn discounts(counts: &PairCounts, accuracy: &[Option<f64>], labels: usize) -> Vec<f64> {
    let mut copies = vec![1.0; accuracy.len()];
    for pair in pairs(counts, accuracy, labels).iter().filter(|pair| pair.significant) {
        copies[pair.first] += pair.excess;
        copies[pair.second] += pair.excess;
    }
    copies.into_iter().map(|c| 1.0 / c).collect()
}

/// Σ_i d_i over workers with votes: how many independent workers these are worth.
pub fn effective_workers(discounts: &[f64], accuracy: &[Option<f64>]) -> f64 {
    discounts.iter().zip(accuracy).filter(|(_, w)| w.is_some()).map(|(d, _)| d).sum()
}
