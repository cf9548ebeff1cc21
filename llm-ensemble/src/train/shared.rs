//! Weights shared across attributes, and incremental updates with new votes.

use std::collections::BTreeMap;

use common::Result;
use rayon::prelude::*;

use super::{Consensus, Evidence, Method, Options, fit};
use crate::model::shrink;
use crate::votes::{Duplicates, Votes};

/// Aggregated attributes whose worker accuracies were shrunk towards the worker's own accuracy
/// over all attributes.
#[derive(Debug, Clone)]
pub struct SharedFit {
    /// Result per attribute.
    pub attributes: BTreeMap<String, Consensus>,
    /// Accuracy per worker over all attributes.
    pub accuracy: BTreeMap<String, f64>,
    /// Votes that the shared accuracy is worth in every attribute.
    pub strength: f64,
}

/// Aggregates each attribute with the method, learns one accuracy per worker over all attributes
/// and how much accuracies vary between attributes (the strength, by empirical Bayes), and
/// aggregates again with that prior. Workers are matched by name.
///
/// Methods with a prior on accuracy use it: IWMV and one coin. For the others the result equals
/// [`super::per_attribute`].
///
/// # Errors
/// The first error of any attribute.
pub fn per_attribute_shared(
    attributes: &[(String, Votes)],
    method: Method,
    options: &Options,
) -> Result<SharedFit> {
    let first = super::per_attribute(attributes, method, options)?;
    let shared = Shared::learn(attributes.iter().map(|(name, votes)| (votes, &first[name])));
    let attributes = attributes
        .par_iter()
        .map(|(name, votes)| {
            let evidence = Evidence { prior: shared.prior(votes), ..Evidence::default() };
            Ok((name.clone(), fit(votes, method, &evidence, options)?))
        })
        .collect::<Result<_>>()?;
    Ok(SharedFit { attributes, accuracy: shared.accuracy, strength: shared.strength })
}

/// What all attributes together say about the workers.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Accuracy per worker over all attributes.
    pub accuracy: BTreeMap<String, f64>,
    /// Votes that it is worth in every attribute.
    pub strength: f64,
}

impl Shared {
    /// From fits of single attributes, by agreement with each attribute's consensus.
    pub fn learn<'a>(fits: impl Iterator<Item = (&'a Votes, &'a Consensus)>) -> Self {
        // (right, wrong) per worker and attribute.
        let mut counts: BTreeMap<String, Vec<[f64; 2]>> = BTreeMap::new();
        for (votes, consensus) in fits {
            let mut right = vec![0.0; votes.workers.len()];
            for (item, &expected) in consensus.label.iter().enumerate() {
                for (worker, label) in votes.of(item) {
                    right[worker] += f64::from(u8::from(label == expected));
                }
            }
            let totals = votes.votes_per_worker();
            for (worker, (&n, right)) in totals.iter().zip(right).enumerate() {
                let rows = counts.entry(votes.workers.name(worker)).or_default();
                rows.push([right, n as f64 - right]);
            }
        }
        let accuracy: BTreeMap<String, f64> = counts
            .iter()
            .map(|(name, rows)| {
                let right: f64 = rows.iter().map(|row| row[0]).sum();
                let total: f64 = rows.iter().map(|row| row[0] + row[1]).sum();
                (name.clone(), (right + 0.5) / (total + 1.0))
            })
            .collect();
        let bases: BTreeMap<&String, [f64; 2]> =
            accuracy.iter().map(|(name, &w)| (name, [w, 1.0 - w])).collect();
        let mut strength = 4.0;
        for _ in 0..20 {
            let rows = counts.iter().flat_map(|(name, rows)| {
                let base = &bases[name];
                rows.iter().map(move |row| (&row[..], &base[..]))
            });
            strength = shrink::strength_step(rows, strength);
        }
        Self { accuracy, strength }
    }

    /// [`Evidence::prior`] for the workers of `votes`.
    pub fn prior(&self, votes: &Votes) -> Vec<Option<(f64, f64)>> {
        (0..votes.workers.len())
            .map(|i| self.accuracy.get(&votes.workers.name(i)).map(|&w| (w, self.strength)))
            .collect()
    }
}

/// Adds `newer` votes to `votes` and aggregates again, starting from the weights of `previous`
/// (its workers matched by name; new workers start with the mean weight). IWMV then needs few
/// rounds; other methods start afresh.
///
/// # Errors
/// As [`crate::votes::Votes::merged`] and [`fit`].
pub fn update(
    votes: &Votes,
    previous: &Consensus,
    newer: &Votes,
    options: &Options,
    duplicates: Duplicates,
) -> Result<(Votes, Consensus)> {
    let merged = votes.merged(newer, duplicates)?;
    let mean = previous.weights.iter().sum::<f64>() / previous.weights.len().max(1) as f64;
    let start = if mean > 0.0 { mean } else { 1.0 };
    let weights = (0..merged.workers.len())
        .map(|i| {
            let known = votes.workers.position(&merged.workers.name(i));
            known.map_or(start, |old| previous.weights[old])
        })
        .collect();
    let evidence = Evidence { weights, ..Evidence::default() };
    let consensus = fit(&merged, previous.method, &evidence, options)?;
    Ok((merged, consensus))
}
