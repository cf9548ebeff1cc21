//! A fitted ensemble on disk, and labels as they are written.

use std::path::Path;

use common::{Error, Result, data};
use serde::{Deserialize, Serialize};

use crate::config::AggregateConfig;
use crate::model::{bound, vote};
use crate::train::{self, Consensus, Evidence, Method, Options};
use crate::votes::{Label, MISSING, Votes};

/// Weights per attribute, as `fit` writes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ensemble {
    /// Version of this format.
    pub format: u32,
    /// The aggregator that estimated the weights.
    pub method: Method,
    /// Its options.
    pub options: Options,
    /// One model per attribute.
    pub attributes: Vec<AttributeModel>,
}

/// The weights of one attribute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeModel {
    /// Attribute; "" in a vote file without an attribute column.
    pub name: String,
    /// The label set.
    pub labels: Vec<String>,
    /// The workers.
    pub workers: Vec<WorkerModel>,
    /// Rounds until the labels were stable.
    pub rounds: usize,
    /// Items whose top score is shared.
    pub ties: usize,
    /// Items decided by majority vote because all their voters have weights ≤ 0.
    pub fallbacks: usize,
    /// Upper bound of the error probability of an item (Eq. 5) at the estimated accuracies; absent
    /// when it says nothing (≥ 1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_bound: Option<f64>,
    /// What to know about the votes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One worker's weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerModel {
    /// The worker.
    pub name: String,
    /// Votes that it cast.
    pub votes: usize,
    /// Estimated accuracy; absent without votes.
    pub accuracy: Option<f64>,
    /// Weight of its vote; 0 without votes.
    pub weight: f64,
}

/// The label of one item.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Attribute; "" in a vote file without an attribute column.
    pub attribute: String,
    /// Item.
    pub item: String,
    /// Label; "" without a vote or below the confidence asked for.
    pub label: String,
    /// Probability that the label is right, under the model; absent without a vote.
    pub confidence: Option<f64>,
    /// Votes on the item.
    pub votes: usize,
}

const FORMAT: u32 = 1;

impl Ensemble {
    /// Without attributes.
    pub fn new(config: &AggregateConfig) -> Self {
        Self {
            format: FORMAT,
            method: config.method,
            options: config.options,
            attributes: Vec::new(),
        }
    }

    /// Adds a fitted attribute.
    pub fn add(&mut self, name: &str, votes: &Votes, result: &Consensus) {
        let cast = votes.votes_per_worker();
        let workers = (0..votes.workers.len())
            .map(|worker| WorkerModel {
                name: votes.workers.name(worker),
                votes: cast[worker],
                accuracy: result.accuracy[worker],
                weight: result.weights[worker],
            })
            .collect();
        let accuracies: Vec<f64> = result.accuracy.iter().map(|w| w.unwrap_or(0.0)).collect();
        let (items, n) = (votes.items.len() as f64, votes.workers.len() as f64);
        let observed = (votes.len() as f64 / (items * n).max(1.0)).min(1.0);
        let bound = bound::error_bound(&accuracies, &result.weights, votes.labels.len(), observed);
        self.attributes.push(AttributeModel {
            name: name.to_owned(),
            labels: votes.labels.to_vec(),
            workers,
            rounds: result.rounds,
            ties: result.ties,
            fallbacks: result.fallbacks.len(),
            error_bound: Some(bound).filter(|bound| *bound < 1.0),
            warnings: result.warnings.iter().map(|warning| format!("{warning:?}")).collect(),
        });
    }

    /// Writes the model as JSON, all of it or nothing.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::Bug(format!("model as JSON: {error}")))?;
        data::atomic_write(path, (text + "\n").as_bytes())
    }

    /// Reads a model of [`Ensemble::write`].
    ///
    /// # Errors
    /// Unreadable, not of this format, or with a weight that is not finite.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let refuse = |found: String| {
            Error::data(found, "a model file that `llm-ensemble fit` wrote").in_file(path)
        };
        let model: Self = serde_json::from_str(&text).map_err(|error| refuse(error.to_string()))?;
        if model.format != FORMAT {
            return Err(refuse(format!("format {}", model.format)));
        }
        let finite = |worker: &WorkerModel| {
            let accuracy = worker.accuracy.unwrap_or(0.5);
            worker.weight.is_finite() && (0.0..=1.0).contains(&accuracy)
        };
        if !model.attributes.iter().all(|a| a.workers.iter().all(finite)) {
            return Err(refuse("a weight or accuracy out of range".into()));
        }
        Ok(model)
    }

    /// Labels the items of `votes` by a vote with this model's weights. Workers that the model
    /// does not know have no weight.
    ///
    /// # Errors
    /// An attribute that the model does not know.
    pub fn predict(
        &self,
        name: &str,
        votes: &Votes,
        config: &AggregateConfig,
    ) -> Result<Vec<Prediction>> {
        let model = self.attributes.iter().find(|a| a.name == name).ok_or_else(|| {
            Error::data(format!("attribute {name:?}"), "an attribute that the model was fitted on")
        })?;
        let known = |worker: usize| {
            let name = votes.workers.name(worker);
            model.workers.iter().find(|w| w.name == name)
        };
        let workers: Vec<Option<&WorkerModel>> = (0..votes.workers.len()).map(known).collect();
        let evidence = Evidence {
            weights: workers.iter().map(|w| w.map_or(0.0, |w| w.weight)).collect(),
            ..Evidence::default()
        };
        let mut result = train::fit(votes, Method::Wmv, &evidence, &self.options)?;
        result.accuracy = workers.iter().map(|w| w.and_then(|w| w.accuracy)).collect();
        Ok(labelled(name, votes, &result, config))
    }
}

/// Labels with their confidence: the posterior of probabilistic methods, otherwise that of the
/// one-coin model at the estimated accuracies (the log-odds sums of Eq. 6, normalised).
pub fn labelled(
    attribute: &str,
    votes: &Votes,
    result: &Consensus,
    config: &AggregateConfig,
) -> Vec<Prediction> {
    let l = votes.labels.len();
    let log_odds: Vec<f64> = result
        .accuracy
        .iter()
        .map(|w| w.map_or(0.0, |w| vote::log_odds_weight(l as f64, w)))
        .collect();
    let mut sums = vec![0.0; l];
    (0..votes.items.len())
        .map(|item| {
            let code = result.label[item];
            let voters = votes.range(item).len();
            let mut prediction = Prediction {
                attribute: attribute.to_owned(),
                item: votes.items.name(item),
                label: String::new(),
                confidence: None,
                votes: voters,
            };
            if code == MISSING {
                return prediction;
            }
            let confidence = if result.probabilistic {
                result.scores_of(item)[code as usize]
            } else {
                sums.fill(0.0);
                for (worker, label) in votes.of(item) {
                    sums[label as usize] += log_odds[worker];
                }
                share(&sums, code)
            };
            prediction.confidence = Some(confidence);
            if confidence >= config.abstain_below {
                prediction.label = votes.labels.name(code as usize);
            }
            prediction
        })
        .collect()
}

/// exp(sums\[code\]) / Σ exp(sums).
fn share(sums: &[f64], code: Label) -> f64 {
    let top = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = sums.iter().map(|sum| (sum - top).exp()).sum();
    (sums[code as usize] - top).exp() / total
}
