//! The hypernetwork: an LLM that writes the raw weights of an ad's click model.
//!
//! Three modes: `rating` (Eq. 4, token probabilities of rating words), `likelihood` (ours: how much
//! likelier the ad makes a feature's description) and `json` (the paper's form: reasoning and
//! weights in JSON). All are asked through [`common::llm::Llm`], so local models, endpoints and
//! recordings differ in the spec only.

pub mod json;
pub mod prompts;
mod tokens;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use common::llm::{EndpointOptions, Llm, LlmOptions, LlmSpec, OptionScore, Prompt};
use common::{Error, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};

pub use tokens::Counter;

use crate::artefact::Reason;
use crate::config::{Mode, WriterConfig};
use crate::data::{Ad, Schema, schema::hex};
use crate::model::rating::{calibrated, expected_rating};

/// A retired ad in a prompt.
#[derive(Debug, Clone)]
pub struct Demonstration<'a> {
    /// The ad.
    pub ad: &'a Ad,
    /// Its trained weights, for JSON.
    pub weights: Vec<f64>,
    /// How they differ from the library's median, in standard deviations of each feature: what is
    /// special about this ad.
    pub special: Vec<f64>,
    /// Cosine similarity to the new ad.
    pub similarity: f64,
}

/// What the LLM is asked about one ad.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    /// The new ad.
    pub ad: &'a Ad,
    /// Demonstrations, least similar first.
    pub demos: Vec<Demonstration<'a>>,
}

/// What the LLM wrote for one ad.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Raw {
    /// One value per feature; `None` where nothing usable came.
    pub values: Vec<Option<f64>>,
    /// Reasons, where the LLM gave any.
    pub reasoning: Vec<Reason>,
    /// SHA-256 of all prompts.
    pub prompt_hash: String,
}

impl Raw {
    /// Values, 0 where there is none.
    pub fn or_zero(&self) -> Vec<f64> {
        self.values.iter().map(|value| value.unwrap_or(0.0)).collect()
    }

    /// Values, if there is one for every feature.
    pub fn complete(&self) -> Option<Vec<f64>> {
        self.values.iter().copied().collect()
    }

    /// Features without a value.
    pub fn gaps(&self) -> impl Iterator<Item = usize> {
        self.values.iter().enumerate().filter(|(_, value)| value.is_none()).map(|(j, _)| j)
    }
}

/// What the first answer of a recording was asked as.
fn recorded_mode(file: &Path) -> Result<Mode> {
    let reader = BufReader::new(std::fs::File::open(file).map_err(Error::io(file))?);
    let line = reader.lines().next().transpose().map_err(Error::io(file))?.unwrap_or_default();
    let recorded: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
    let raw = recorded.pointer("/request/raw").and_then(serde_json::Value::as_str);
    Ok(match raw {
        Some(prompt) if prompt.starts_with(prompts::LIKELIHOOD) => Mode::Likelihood,
        Some(_) => Mode::Rating,
        None => Mode::Json,
    })
}

/// How the answers went, over all ads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Ads asked about.
    pub ads: usize,
    /// Prompts, repairs included.
    pub prompts: usize,
    /// Feature weights asked for.
    pub weights: usize,
    /// Answers that were not JSON as asked, or lacked weights, and were asked again.
    pub repairs: usize,
    /// Feature weights without a usable answer.
    pub unusable: usize,
    /// Tokens computed (local models) or sent.
    pub tokens: u64,
    /// Tokens that the shared prefix did not have to be computed again.
    pub tokens_saved: u64,
}

/// An LLM with the prompts of one schema.
pub struct Writer {
    llm: Llm,
    mode: Mode,
    config: WriterConfig,
    schema: Schema,
    counter: Counter,
    /// Whether answers come from a recording.
    replay: bool,
    /// Answers under an ad without content, computed once.
    content_free: OnceLock<Vec<f64>>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("llm", &self.llm).field("mode", &self.mode).finish()
    }
}

impl Writer {
    /// Opens the LLM of `spec`. [`Mode::Auto`] becomes `json` for endpoints, `rating` for local
    /// models, and for recordings what was recorded.
    ///
    /// # Errors
    /// As [`Llm::open`]; [`Error::Usage`] for `rating` or `likelihood` with an endpoint, which does
    /// not tell the probabilities of given tokens.
    pub fn open(
        spec: &LlmSpec,
        options: &LlmOptions,
        schema: &Schema,
        config: &WriterConfig,
    ) -> Result<Self> {
        let endpoint = matches!(spec, LlmSpec::Endpoint { .. });
        let mode = match (config.mode, spec) {
            (Mode::Auto, LlmSpec::Endpoint { .. }) => Mode::Json,
            (Mode::Auto, LlmSpec::Replay { file, .. }) => recorded_mode(file)?,
            (Mode::Auto, _) => Mode::Rating,
            (Mode::Rating | Mode::Likelihood, _) if endpoint => {
                return Err(Error::usage(format!(
                    "writer.mode = {:?} needs token probabilities, which {spec} does not tell; use \
                     writer.mode = \"json\" or a gguf: or hf: model",
                    config.mode
                )));
            }
            (mode, _) => mode,
        };
        let options = LlmOptions {
            endpoint: EndpointOptions {
                budget: Duration::from_secs(config.budget_seconds),
                attempt_timeout: Duration::from_secs(config.attempt_seconds),
                attempts: config.attempts,
                backoff: Duration::from_millis(config.backoff_ms),
                ..options.endpoint.clone()
            },
            ..options.clone()
        };
        Ok(Self {
            counter: Counter::new(spec, &options.assets)?,
            llm: Llm::open(spec, &options)?,
            replay: matches!(spec, LlmSpec::Replay { .. }),
            mode,
            config: config.clone(),
            schema: schema.clone(),
            content_free: OnceLock::new(),
        })
    }

    /// Whether token counts are the model's own, not estimates.
    pub fn counts_exactly(&self) -> bool {
        self.counter.exact()
    }

    /// What is asked for; never [`Mode::Auto`].
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The LLM and how it is asked, for artefacts.
    pub fn name(&self) -> String {
        let mode = match self.mode {
            Mode::Json => "json",
            Mode::Likelihood => "likelihood",
            Mode::Rating | Mode::Auto => "rating",
        };
        format!("{} ({mode})", self.llm.name())
    }

    /// The raw weights of every query's ad, in their order.
    ///
    /// # Errors
    /// As [`Llm::generate_many`] and [`Llm::score_options`]; an answer that is unusable is no
    /// error, but a [`Raw`] with gaps.
    pub fn write(&self, queries: &[Query<'_>]) -> Result<(Vec<Raw>, Tally)> {
        let mut tally = Tally {
            ads: queries.len(),
            weights: queries.len() * self.schema.len(),
            ..Tally::default()
        };
        let raws = match self.mode {
            Mode::Json => json::write(
                &self.llm,
                &self.schema,
                &self.config,
                &self.counter,
                queries,
                &mut tally,
            )?,
            _ => self.by_probability(queries, &mut tally)?,
        };
        tally.unusable = raws.iter().flat_map(|raw| &raw.values).filter(|v| v.is_none()).count();
        Ok((raws, tally))
    }

    /// The prompts of one query as text, for `--dry-run`, with the number of tokens.
    pub fn dry_run(&self, query: &Query<'_>) -> Vec<(String, u64)> {
        match self.mode {
            Mode::Json => prompts::json_batches(&self.schema, &self.config, query)
                .into_iter()
                .map(|(_, messages)| {
                    let text = prompts::as_text(&messages);
                    let tokens = self.counter.count(&text);
                    (text, tokens)
                })
                .collect(),
            mode => {
                let (prompt, options) = self.prompt(mode, query);
                let tokens = self.counter.prefix_and_options(&prompt, &options).0;
                let shown = options.iter().map(|option| format!("  …{option:?}\n"));
                vec![(format!("{prompt}\n{}", shown.collect::<String>()), tokens)]
            }
        }
    }

    fn prompt(&self, mode: Mode, query: &Query<'_>) -> (String, Vec<String>) {
        match mode {
            Mode::Likelihood => prompts::likelihood(&self.schema, &self.config, query),
            _ => prompts::rating(&self.schema, &self.config, query),
        }
    }

    /// `rating` and `likelihood`: one batch of continuations behind each ad's prefix.
    fn by_probability(&self, queries: &[Query<'_>], tally: &mut Tally) -> Result<Vec<Raw>> {
        let nothing = Ad { title: prompts::CONTENT_FREE.into(), ..Ad::default() };
        let base = match self.content_free.get() {
            Some(base) => base.clone(),
            None if self.config.content_free => {
                let query = Query { ad: &nothing, demos: Vec::new() };
                let base = self.values(&[query], tally)?.remove(0).1?;
                self.content_free.get_or_init(|| base).clone()
            }
            None => vec![0.0; self.schema.len()],
        };
        let usable = |v: f64| v.is_finite().then_some(v);
        let answers = self.values(queries, tally)?.into_iter().zip(queries);
        let raws = answers.map(|((prompt_hash, values), query)| {
            let values = match values {
                Ok(values) => calibrated(&values, &base).into_iter().map(usable).collect(),
                // This one prompt can't be answered (too long for the context): the ad falls back.
                Err(Error::LlmOutput(reason)) => {
                    tracing::warn!("ad {}: {reason}", query.ad.id);
                    vec![None; self.schema.len()]
                }
                // A recording lacks this prompt; the share of such ads is limited by the caller.
                Err(error @ Error::Asset { .. }) if self.replay => {
                    tracing::warn!("ad {}: {error}", query.ad.id);
                    vec![None; self.schema.len()]
                }
                Err(error) => return Err(error),
            };
            Ok(Raw { values, reasoning: Vec::new(), prompt_hash })
        });
        raws.collect()
    }

    /// Of every query the hash of its prompt and one value per feature before calibration.
    fn values(
        &self,
        queries: &[Query<'_>],
        tally: &mut Tally,
    ) -> Result<Vec<(String, Result<Vec<f64>>)>> {
        let mut asked = Vec::with_capacity(queries.len());
        let mut hashes = Vec::with_capacity(queries.len());
        for query in queries {
            let (prompt, options) = self.prompt(self.mode, query);
            let (computed, saved) = self.counter.prefix_and_options(&prompt, &options);
            tally.prompts += 1;
            tally.tokens += computed;
            tally.tokens_saved += saved;
            hashes.push(hex(&Sha256::digest(&prompt)));
            asked.push((Prompt::Raw(prompt), options));
        }
        let value = |scores: Vec<OptionScore>| match self.mode {
            Mode::Likelihood => scores.iter().map(|score| score.log_prob).collect(),
            _ => scores
                .chunks(self.config.words.len())
                .map(|words| {
                    let log_probs: Vec<f64> = words.iter().map(|w| w.log_prob).collect();
                    expected_rating(&log_probs)
                })
                .collect(),
        };
        let scores = self.llm.score_many(&asked)?;
        Ok(hashes.into_iter().zip(scores.into_iter().map(|scores| scores.map(value))).collect())
    }
}
