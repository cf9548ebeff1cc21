//! What is learned on retired ads that are treated as cold (ours): how much the LLM's answers are
//! worth beside the library's own sources, and how strong a prior served weights make.

use std::path::Path;

use common::rng::Seed;
use common::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::blend::{Blend, Example};
use crate::config::Mode;
use crate::data::{Dataset, Schema};
use crate::generate::Generator;
use crate::library::Library;
use crate::model::intercept;
use crate::model::logit::sigmoid;
use crate::model::prior::Prior;
use crate::model::residual::Residual;
use crate::sources::{self, Sources};

/// Impressions of a retired ad that the blend is learned from, at most.
const ROWS: usize = 400;
/// Impressions of a retired ad that a prior's strength is chosen on; its others judge.
const FIRST: usize = 50;
/// Prior precisions tried, in units of the library's λ.
const STRENGTHS: [f64; 7] = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0];

/// The blend that serves an ad, as a file. It belongs to one library and one LLM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Hash of the features ([`Schema::hash`]).
    pub feature_schema_hash: String,
    /// How the LLM was asked.
    pub mode: Mode,
    /// Blend of the sources of [`sources::NAMES`], learned on all retired ads.
    pub cheap: Blend,
    /// What is usual about the LLM's answers.
    pub residual: Residual,
    /// Blend of `cheap` and the LLM's answer, learned on the retired ads that it was asked about.
    pub with_llm: Blend,
    /// λ of Eq. 7 for the served weights, in units of the library's.
    pub prior_strength: f64,
}

/// Retired ads as the library's sources see them when they are treated as cold.
#[derive(Debug, Clone)]
pub struct AsCold {
    /// All retired ads with impressions, in the library's order.
    pub examples: Vec<Example>,
    /// Their indices in the library.
    pub indices: Vec<usize>,
}

impl AsCold {
    /// Weights of every source for the retired ads that have impressions in `data` for which `keep`
    /// holds.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn new(
        generator: &Generator<'_>,
        sources: &Sources<'_>,
        data: &Dataset,
        keep: impl Fn(usize) -> bool,
        seed: Seed,
    ) -> Result<Self> {
        let library = generator.library;
        let rows = data.rows_by_ad(keep);
        let by_id: std::collections::HashMap<&str, &Vec<usize>> =
            data.ads.iter().map(|ad| ad.id.as_str()).zip(&rows).collect();
        let own = |at: usize| by_id.get(library.ads[at].ad.id.as_str()).copied();
        let indices: Vec<usize> = (0..library.ads.len())
            .filter(|&at| own(at).is_some_and(|rows| !rows.is_empty()))
            .collect();
        let found = generator.retrieve(&sources::as_cold(library, &indices))?;
        let weights = sources.weights_as_cold(&indices)?;
        let examples =
            indices.iter().zip(found.iter().zip(weights)).map(|(&at, (found, weights))| {
                let mut rows = own(at).cloned().unwrap_or_default();
                seed.stream(&format!("calibrate/{}", library.ads[at].ad.id)).shuffle(&mut rows);
                rows.truncate(ROWS);
                Example {
                    sources: weights,
                    rate: generator.target_rate(found),
                    features: data.impressions.rows(&rows),
                    clicked: data.impressions.labels(&rows),
                }
            });
        Ok(Self { examples: examples.collect(), indices })
    }

    /// The examples of some of the library's ads; those without impressions are left out.
    pub fn of(&self, library_indices: &[usize]) -> Vec<&Example> {
        let at = library_indices.iter().filter_map(|at| self.indices.binary_search(at).ok());
        at.map(|at| &self.examples[at]).collect()
    }
}

impl Calibration {
    /// Learns the blend. `asked` are the library's ads that the LLM was asked about, in `mode`, as if
    /// they were new; `answers` is what it wrote (before Eq. 5).
    ///
    /// # Errors
    /// [`Error::Data`] with fewer than five ads of either kind.
    pub fn fit(
        library: &Library,
        as_cold: &AsCold,
        mode: Mode,
        asked: &[usize],
        answers: &[Vec<f64>],
        seed: Seed,
    ) -> Result<Self> {
        let cheap = Blend::fit(&as_cold.examples, None, seed)?;
        let spread = library.spread();
        let special: Vec<Vec<f64>> = asked.iter().map(|&at| library.special(at)).collect();
        let residual = Residual::fit(answers, &special)?;
        let with_answers: Vec<Example> = asked
            .iter()
            .zip(answers)
            .flat_map(|(at, answer)| as_cold.of(&[*at]).into_iter().map(move |ad| (ad, answer)))
            .map(|(ad, answer)| Example {
                sources: vec![cheap.weights(&ad.sources), residual.direction(answer, &spread)],
                ..ad.clone()
            })
            .collect();
        let with_llm = Blend::fit(&with_answers, Some(0), seed)?;
        let mut calibration = Self {
            feature_schema_hash: library.schema.hash(),
            mode,
            cheap,
            residual,
            with_llm,
            prior_strength: 1.0,
        };
        let served: Vec<Vec<f64>> =
            with_answers.iter().map(|ad| calibration.with_llm.weights(&ad.sources)).collect();
        let ads: Vec<&Example> = with_answers.iter().collect();
        calibration.prior_strength = prior_strength(&ads, &served, library.c)?;
        Ok(calibration)
    }

    /// The blend's weights from the weights of [`Sources`] and the LLM's answer; without an answer
    /// those of the sources alone.
    pub fn weights(
        &self,
        sources: &[Vec<f64>],
        answer: Option<&[f64]>,
        spread: &[f64],
    ) -> Vec<f64> {
        let cheap = self.cheap.weights(sources);
        match answer {
            Some(answer) => {
                self.with_llm.weights(&[cheap, self.residual.direction(answer, spread)])
            }
            None => cheap,
        }
    }

    /// Coefficients of the sources and of the LLM in words.
    pub fn words(&self) -> String {
        let share = self.with_llm.coefficients[0];
        let cheap = self.cheap.coefficients.iter().zip(sources::NAMES);
        let cheap = cheap.map(|(c, name)| format!("{:.2} {name}", c * share));
        let llm = format!("{:.2} LLM", self.with_llm.coefficients[1]);
        cheap.chain([llm]).collect::<Vec<_>>().join(" + ")
    }

    /// Refuses features of another schema, and answers that were asked for in another way.
    ///
    /// # Errors
    /// [`Error::Data`] with both hashes or modes.
    pub fn check(&self, schema: &Schema, mode: Mode) -> Result<()> {
        let even = self.residual.mean.len() == schema.len()
            && self.residual.sd.len() == schema.len()
            && self.cheap.coefficients.len() == sources::NAMES.len()
            && self.with_llm.coefficients.len() == 2;
        if self.feature_schema_hash != schema.hash() || !even {
            return Err(Error::data(
                format!("a calibration for the feature schema {:.12}", self.feature_schema_hash),
                format!("one for the library's schema {:.12}; calibrate again", schema.hash()),
            ));
        }
        if self.mode != mode {
            return Err(Error::data(
                format!("a calibration of answers in mode {:?}", self.mode),
                format!("one in mode {mode:?}; calibrate again, or set writer.mode"),
            ));
        }
        Ok(())
    }

    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] when it is no calibration.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::data(error.to_string(), "a calibration as `llm-hyper calibrate` writes it")
                .in_file(path)
        })
    }

    /// Writes JSON, atomically.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::Bug(format!("calibration as JSON: {error}")))?;
        common::files::atomic_write(path, text.as_bytes())
    }
}

/// λ of Eq. 7 in units of the library's λ = 1 / `c`: the value with the lowest log loss on what
/// retired ads, treated as cold and started from `weights`, have beyond their first impressions.
/// 1 when no ad has enough.
///
/// # Errors
/// As [`Prior::update`].
pub fn prior_strength(ads: &[&Example], weights: &[Vec<f64>], c: f64) -> Result<f64> {
    let mut best = (f64::INFINITY, 1.0);
    for strength in STRENGTHS {
        let losses: Vec<f64> = ads
            .par_iter()
            .zip(weights)
            .filter(|(ad, _)| ad.clicked.len() > 2 * FIRST)
            .map(|(ad, weights)| -> Result<f64> {
                let w = ndarray::ArrayView1::from(weights);
                let bias = intercept::solve(&ad.features.dot(&w).to_vec(), ad.rate)?;
                let prior = Prior {
                    weights: weights.clone(),
                    bias,
                    precision: strength / c,
                    bias_precision: 1.0,
                };
                let (seen, rest) = ad.features.view().split_at(ndarray::Axis(0), FIRST);
                let posterior = prior.update(seen, &ad.clicked[..FIRST])?;
                let logits = rest.dot(&ndarray::ArrayView1::from(&posterior.weights));
                let p: Vec<f64> = logits.iter().map(|z| sigmoid(z + posterior.bias)).collect();
                Ok(common::metrics::log_loss(&ad.clicked[FIRST..], &p, None))
            })
            .collect::<Result<_>>()?;
        let loss: f64 = losses.iter().sum();
        if !losses.is_empty() && loss < best.0 {
            best = (loss, strength);
        }
    }
    Ok(best.1)
}
