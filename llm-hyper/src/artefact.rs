//! What is served for one ad: weights and intercept, with everything that explains them.

use std::io::Write;
use std::path::Path;

use common::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::data::Schema;

/// The click model of one ad. A file of artefacts has one JSON object per line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artefact {
    /// The ad's id.
    pub ad_id: String,
    /// The ad's text as the LLM saw it.
    pub ad_text: String,
    /// Hash of the features that the weights belong to ([`Schema::hash`]).
    pub feature_schema_hash: String,
    /// Served weights, one per feature, after Eq. 5, clipping and limits.
    pub weights: Vec<f64>,
    /// Served intercept (Eq. 6).
    pub bias: f64,
    /// What the LLM wrote, before normalisation.
    pub raw: Vec<f64>,
    /// Retired ads that stood in the prompt, most similar first.
    pub demos: Vec<DemoUsed>,
    /// Mean click probability that the intercept aims at.
    pub target_rate: f64,
    /// Where the weights come from.
    pub source: Source,
    /// Features for which the LLM gave no weight: served from the demonstrations' mean, or from the
    /// library's sources in a blend.
    pub filled: Vec<String>,
    /// The LLM as it was named, and how it was asked.
    pub llm: String,
    /// SHA-256 of all prompts of this ad.
    pub prompt_hash: String,
    /// The LLM's reasons by feature, where it gave any.
    pub reasoning: Vec<Reason>,
}

/// A demonstration in an artefact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DemoUsed {
    /// Id of the retired ad.
    pub id: String,
    /// Its text.
    pub text: String,
    /// Cosine similarity to the new ad.
    pub similarity: f64,
}

/// The LLM's reason for one weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// Name of the feature.
    pub feature: String,
    /// What the LLM wrote.
    pub text: String,
}

/// Where an ad's weights come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The LLM (single features may be filled, see [`Artefact::filled`]).
    #[default]
    Llm,
    /// The LLM gave nothing usable: similarity-weighted mean of the demonstrations.
    Knn,
    /// There were no demonstrations either, or all raw weights were zero: median of the library.
    LrCold,
    /// The learned blend of the LLM's answer and the library's own sources.
    Blend,
    /// Corrected by the ad's own impressions (Eq. 7).
    Warmed,
}

impl Artefact {
    /// Refuses to be served on other features than its own.
    ///
    /// # Errors
    /// [`Error::Data`] that names the ad and both hashes.
    pub fn check_schema(&self, schema: &Schema) -> Result<()> {
        let expected = schema.hash();
        if self.feature_schema_hash != expected || self.weights.len() != schema.len() {
            return Err(Error::data(
                format!(
                    "the artefact of ad {:?} with {} weights for the feature schema {:.12}",
                    self.ad_id,
                    self.weights.len(),
                    self.feature_schema_hash
                ),
                format!(
                    "{} weights for the schema {expected:.12} in use; generate the artefacts again",
                    schema.len()
                ),
            ));
        }
        if self.weights.iter().chain([&self.bias]).any(|w| !w.is_finite()) {
            return Err(Error::data(
                format!("the artefact of ad {:?} with a weight that is not finite", self.ad_id),
                "finite weights; generate the artefact again",
            ));
        }
        Ok(())
    }
}

/// Writes artefacts as JSON lines, atomically.
///
/// # Errors
/// [`Error::Io`].
pub fn write(path: &Path, artefacts: &[Artefact]) -> Result<()> {
    let lines: Vec<String> = artefacts
        .iter()
        .map(|artefact| {
            serde_json::to_string(artefact)
                .map_err(|error| Error::Bug(format!("artefact as JSON: {error}")))
        })
        .collect::<Result<_>>()?;
    common::files::atomic_with(path, |file| {
        lines.iter().try_for_each(|line| writeln!(file, "{line}"))
    })
}

/// Reads artefacts and checks them against `schema`.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] with the line, on other features, or an ad twice.
pub fn read(path: &Path, schema: &Schema) -> Result<Vec<Artefact>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let mut artefacts: Vec<Artefact> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let artefact: Artefact = serde_json::from_str(line).map_err(|error| {
            let error = common::error::DataError {
                path: Some(path.to_path_buf()),
                row: Some(at as u64 + 1),
                column: None,
                found: error.to_string(),
                expected: "an artefact as `llm-hyper generate` writes it".into(),
            };
            Error::from(error)
        })?;
        artefact.check_schema(schema).map_err(|error| error.in_file(path))?;
        if !seen.insert(artefact.ad_id.clone()) {
            return Err(Error::data(
                format!("ad {:?} twice", artefact.ad_id),
                "one artefact per ad",
            )
            .in_file(path));
        }
        artefacts.push(artefact);
    }
    if artefacts.is_empty() {
        return Err(Error::data("no artefact", "at least one line").in_file(path));
    }
    Ok(artefacts)
}
