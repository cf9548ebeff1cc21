//! A fitted ensemble on disk, and labels as they are written.

use std::path::Path;

use common::{Error, Result, data};
use serde::{Deserialize, Serialize};

use crate::config::AggregateConfig;
use crate::model::{bound, confusion, vote};
use crate::train::{self, Consensus, Evidence, Method, Options};
use crate::votes::{MISSING, Votes};

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
    /// Share of each label (Eq. 7's π), for methods with a posterior over a closed label set; its
    /// workers then have confusion matrices and `predict` applies Eq. 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_prior: Option<Vec<f64>>,
    /// Exponent of the posterior that calibrates confidences; absent without calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<f64>,
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
    /// Confusion matrix C (Eq. 7): one row per true label, P(voted label) in the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confusion: Option<Vec<Vec<f64>>>,
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

const FORMAT: u32 = 2;

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

    /// Adds a fitted attribute, with the exponent of its calibration if there is one.
    pub fn add(&mut self, name: &str, votes: &Votes, result: &Consensus, calibration: Option<f64>) {
        let cast = votes.votes_per_worker();
        let l = votes.labels.len();
        let confusions = train::confusions(votes, result, &self.options);
        let matrix = |table: &[f64]| -> Vec<Vec<f64>> {
            (0..l).map(|truth| (0..l).map(|voted| table[voted * l + truth]).collect()).collect()
        };
        let workers = (0..votes.workers.len())
            .map(|worker| WorkerModel {
                name: votes.workers.name(worker),
                votes: cast[worker],
                accuracy: result.accuracy[worker],
                weight: result.weights[worker],
                confusion: confusions
                    .as_ref()
                    .map(|c| matrix(&c.table[worker * l * l..(worker + 1) * l * l])),
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
            class_prior: confusions.map(|c| c.prior),
            calibration,
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
        if let Some(attribute) = model.attributes.iter().find(|a| !a.has_sound_confusions()) {
            return Err(refuse(format!(
                "confusion matrices of attribute {:?} that do not fit its labels",
                attribute.name
            )));
        }
        Ok(model)
    }

    /// Labels the items of `votes`: by Eq. 8 where the model has confusion matrices, else by a vote
    /// with its weights. A worker that the model does not know counts as its average worker in the
    /// first case and has no weight in the second.
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
        if let Some(prior) = &model.class_prior {
            return Ok(model.predict_by_confusion(prior, votes, config));
        }
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
        Ok(labelled(name, votes, &result, config, model.calibration))
    }
}

impl AttributeModel {
    fn has_sound_confusions(&self) -> bool {
        let l = self.labels.len();
        let sound = |row: &Vec<f64>| row.len() == l && row.iter().all(|p| (0.0..=1.1).contains(p));
        match &self.class_prior {
            None => true,
            Some(prior) => {
                sound(prior)
                    && self.workers.iter().all(|worker| {
                        let matrix = worker.confusion.as_ref();
                        matrix.is_some_and(|rows| rows.len() == l && rows.iter().all(sound))
                    })
            }
        }
    }

    /// Eq. 8 with this model's matrices. Votes for labels that the model does not know say nothing.
    fn predict_by_confusion(
        &self,
        prior: &[f64],
        votes: &Votes,
        config: &AggregateConfig,
    ) -> Vec<Prediction> {
        let l = self.labels.len();
        let average = self.average_confusion();
        // ln C as [worker][voted label][true label], like the tables of the fit.
        let tables: Vec<Vec<f64>> = (0..votes.workers.len())
            .map(|worker| {
                let name = votes.workers.name(worker);
                let known = self.workers.iter().find(|w| w.name == name);
                let matrix = known.and_then(|w| w.confusion.as_ref()).unwrap_or(&average);
                (0..l * l).map(|at| matrix[at % l][at / l].max(1e-300).ln()).collect()
            })
            .collect();
        let code_of: Vec<Option<usize>> = (0..votes.labels.len())
            .map(|label| {
                let name = votes.labels.name(label);
                self.labels.iter().position(|own| *own == name)
            })
            .collect();
        let mut joint = vec![0.0; l];
        (0..votes.items.len())
            .map(|item| {
                joint.iter_mut().zip(prior).for_each(|(j, p)| *j = p.max(1e-300).ln());
                let mut heard = 0;
                for (worker, label) in votes.of(item) {
                    let Some(code) = code_of[label as usize] else { continue };
                    heard += 1;
                    let row = &tables[worker][code * l..][..l];
                    joint.iter_mut().zip(row).for_each(|(j, c)| *j += c);
                }
                let label = vote::argmax(&joint);
                let exponent = self.calibration.unwrap_or(1.0);
                joint.iter_mut().for_each(|j| *j *= exponent);
                confusion::normalise_log(&mut joint);
                let confidence = (heard > 0).then(|| joint[label as usize]);
                let sure = confidence.is_some_and(|p| p >= config.abstain_below);
                Prediction {
                    attribute: self.name.clone(),
                    item: votes.items.name(item),
                    label: if sure { self.labels[label as usize].clone() } else { String::new() },
                    confidence,
                    votes: votes.range(item).len(),
                }
            })
            .collect()
    }

    /// Mean confusion matrix, every worker counted by its votes.
    fn average_confusion(&self) -> Vec<Vec<f64>> {
        let l = self.labels.len();
        let mut mean = vec![vec![0.0; l]; l];
        let total: usize = self.workers.iter().map(|worker| worker.votes).sum();
        for worker in &self.workers {
            let share = worker.votes as f64 / total.max(1) as f64;
            for (mean, row) in mean.iter_mut().zip(worker.confusion.iter().flatten()) {
                mean.iter_mut().zip(row).for_each(|(m, p)| *m += share * p);
            }
        }
        mean
    }
}

/// Probability per item and label: the posterior of probabilistic methods, otherwise that of the
/// one-coin model at the estimated accuracies (the log-odds sums of Eq. 6, normalised).
pub fn posterior(votes: &Votes, result: &Consensus) -> Vec<f64> {
    if result.probabilistic {
        return result.scores.clone();
    }
    let l = votes.labels.len();
    let log_odds: Vec<f64> = result
        .accuracy
        .iter()
        .map(|w| w.map_or(0.0, |w| vote::log_odds_weight(l as f64, w)))
        .collect();
    let mut rows = vec![0.0; votes.items.len() * l];
    for (item, row) in rows.chunks_exact_mut(l.max(1)).enumerate() {
        for (worker, label) in votes.of(item) {
            row[label as usize] += log_odds[worker];
        }
        confusion::normalise_log(row);
    }
    rows
}

/// Labels with their confidence: the [`posterior`], raised to the `calibration` exponent if there
/// is one.
pub fn labelled(
    attribute: &str,
    votes: &Votes,
    result: &Consensus,
    config: &AggregateConfig,
    calibration: Option<f64>,
) -> Vec<Prediction> {
    let l = votes.labels.len();
    let mut rows = posterior(votes, result);
    (0..votes.items.len())
        .map(|item| {
            let row = &mut rows[item * l..(item + 1) * l];
            let code = result.label[item];
            let mut prediction = Prediction {
                attribute: attribute.to_owned(),
                item: votes.items.name(item),
                label: String::new(),
                confidence: None,
                votes: votes.range(item).len(),
            };
            if code == MISSING {
                return prediction;
            }
            if let Some(exponent) = calibration {
                row.iter_mut().for_each(|p| *p = exponent * p.max(1e-300).ln());
                confusion::normalise_log(row);
            }
            let confidence = row[code as usize];
            prediction.confidence = Some(confidence);
            if confidence >= config.abstain_below {
                prediction.label = votes.labels.name(code as usize);
            }
            prediction
        })
        .collect()
}
