//! Token counts of prompts, for `--dry-run` and the report.

use std::collections::HashSet;
use std::path::Path;

use common::Result;
use common::assets::Assets;
use common::gguf::Gguf;
use common::llm::LlmSpec;
use common::tokenizer::{Special, Tokenizer};

/// Counts tokens with a model's own tokenizer, or estimates them at four bytes each.
pub struct Counter {
    tokenizer: Option<Tokenizer>,
}

impl Counter {
    /// The tokenizer of a GGUF model; other models are estimated.
    ///
    /// # Errors
    /// A model file that can't be read.
    pub fn new(spec: &LlmSpec, assets: &Assets) -> Result<Self> {
        let LlmSpec::Gguf(name) = spec else { return Ok(Self::estimate()) };
        let path = if Path::new(name).exists() {
            Path::new(name).to_path_buf()
        } else {
            let entry = assets.entry(name)?;
            match entry.files.iter().find(|file| file.name.ends_with(".gguf")) {
                Some(file) => assets.file(name, file.name)?,
                None => return Ok(Self::estimate()),
            }
        };
        Ok(Self { tokenizer: Some(Gguf::open(&path)?.tokenizer()?) })
    }

    /// Four bytes per token.
    pub fn estimate() -> Self {
        Self { tokenizer: None }
    }

    /// Whether counts are exact.
    pub fn exact(&self) -> bool {
        self.tokenizer.is_some()
    }

    /// Tokens of a text.
    pub fn count(&self, text: &str) -> u64 {
        match &self.tokenizer {
            Some(tokenizer) => {
                tokenizer.encode(text, Special::AsText).map_or(0, |ids| ids.len() as u64)
            }
            None => text.len().div_ceil(4) as u64,
        }
    }

    /// Tokens computed for `options` behind one prefix, and tokens saved against computing the
    /// prefix for each option. The last token of an option is predicted, not computed, and
    /// beginnings that options share are computed once.
    pub fn prefix_and_options(&self, prefix: &str, options: &[String]) -> (u64, u64) {
        let prefix = self.count(prefix);
        let saved = prefix * (options.len().max(1) as u64 - 1);
        let Some(tokenizer) = &self.tokenizer else {
            let rest = options.iter().map(|option| self.count(option).saturating_sub(1));
            return (prefix + rest.sum::<u64>(), saved);
        };
        let ids = options.iter().map(|o| tokenizer.encode(o, Special::AsText).unwrap_or_default());
        let mut begun = HashSet::new();
        for ids in ids {
            begun.extend((1..ids.len()).map(|length| ids[..length].to_vec()));
        }
        (prefix + begun.len() as u64, saved)
    }
}
