//! The bench's LLM: opened once, recorded answers in the smoke profile.

use std::sync::Mutex;
use std::time::Instant;

use common::llm::{Llm, LlmOptions, LlmSpec};
use common::{Error, Result};

use super::Context;
use crate::config::{Config, Mode, WriterConfig};
use crate::data::Schema;
use crate::writer::{Query, Raw, Tally, Writer};

/// Answers of SmolLM2-135M-Instruct to the prompts of the smoke profile at seed 0.
const RECORDED: &[u8] = include_bytes!("recorded.jsonl");

/// Opens writers on the bench's LLM and keeps count of time and tokens.
pub(super) struct BenchLlm<'a> {
    spec: String,
    context: &'a Context,
    counts: Mutex<Counts>,
}

/// What all prompts of a bench cost.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) tally: Tally,
    pub(super) seconds: f64,
    /// Whether tokens are the model's own, not estimated from bytes.
    pub(super) exact: bool,
}

impl Counts {
    /// Tokens per ad and fallbacks, for notes.
    pub(super) fn words(&self) -> String {
        let ads = self.tally.ads.max(1) as u64;
        format!(
            "{} tokens an ad{}, {} more without the shared prefix; {} of {} weights from the fallback",
            self.tally.tokens / ads,
            if self.exact { "" } else { " (estimated)" },
            self.tally.tokens_saved / ads,
            self.tally.unusable,
            self.tally.weights
        )
    }
}

impl<'a> BenchLlm<'a> {
    pub(super) fn new(config: &Config, context: &'a Context) -> Self {
        Self { spec: config.bench.llm.clone(), context, counts: Mutex::default() }
    }

    /// The LLM's name for tables.
    pub(super) fn name(&self) -> &str {
        if self.recorded() {
            "recorded SmolLM2-135M"
        } else {
            self.spec.rsplit(':').next().unwrap_or("")
        }
    }

    fn recorded(&self) -> bool {
        self.spec == "recorded"
    }

    /// Hands out the spec while a recording's temporary file exists; whoever opens the LLM keeps
    /// the file open.
    fn with_spec<T>(&self, open: impl FnOnce(&LlmSpec, &LlmOptions) -> Result<T>) -> Result<T> {
        if !self.recorded() {
            return open(&self.spec.parse()?, &self.context.llm);
        }
        let file = tempfile::NamedTempFile::new()
            .and_then(|file| std::fs::write(file.path(), RECORDED).map(|()| file))
            .map_err(Error::io(&std::env::temp_dir()))?;
        let spec = LlmSpec::Replay { file: file.path().to_path_buf(), model: None };
        open(&spec, &LlmOptions { cache: None, ..self.context.llm.clone() })
    }

    /// The LLM itself.
    pub(super) fn open(&self) -> Result<Llm> {
        self.with_spec(Llm::open)
    }

    /// A writer in one mode.
    pub(super) fn writer(
        &self,
        schema: &Schema,
        config: &WriterConfig,
        mode: Mode,
    ) -> Result<Writer> {
        let config = WriterConfig { mode, ..config.clone() };
        self.with_spec(|spec, options| Writer::open(spec, options, schema, &config))
    }

    /// Asks and counts.
    pub(super) fn ask(&self, writer: &Writer, queries: &[Query<'_>]) -> Result<(Vec<Raw>, Counts)> {
        let start = Instant::now();
        let (raws, tally) = writer.write(queries)?;
        if self.recorded() && 2 * tally.unusable > tally.weights {
            return Err(Error::asset(
                "recorded answers of SmolLM2",
                "they are for the smoke profile at seed 0 and do not know these prompts",
                "run with --llm gguf:smollm2-135m-instruct",
            ));
        }
        let exact = writer.counts_exactly();
        let spent = Counts { tally, seconds: start.elapsed().as_secs_f64(), exact };
        let mut all = self.counts.lock().map_err(|_| Error::Bug("poisoned lock".into()))?;
        all.seconds += spent.seconds;
        all.exact = exact;
        all.tally.ads += tally.ads;
        all.tally.prompts += tally.prompts;
        all.tally.weights += tally.weights;
        all.tally.repairs += tally.repairs;
        all.tally.unusable += tally.unusable;
        all.tally.tokens += tally.tokens;
        all.tally.tokens_saved += tally.tokens_saved;
        Ok((raws, spent))
    }

    /// Counts time with the model that was not spent in [`Self::ask`].
    pub(super) fn count_seconds(&self, seconds: f64) {
        if let Ok(mut all) = self.counts.lock() {
            all.seconds += seconds;
        }
    }

    /// What was spent so far.
    pub(super) fn spent(&self) -> Counts {
        self.counts.lock().map_or_else(|poisoned| *poisoned.into_inner(), |counts| *counts)
    }
}
