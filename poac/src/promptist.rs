//! GPT-2 as a prompt optimiser, as in Promptist: any checkpoint under transformers' names.

use std::path::Path;

use common::assets::Assets;
use common::lm::{BeamOptions, Lm};
use common::stable_diffusion::ModelFolder;
use common::tokenizer::{Special, Tokenizer};
use common::{Error, Result};

use crate::config::SearchConfig;

/// What separates a prompt from its rewriting (§3.2 of the specification).
const SEPARATOR: &str = " Rephrase:";

/// Most new tokens (Promptist).
const MAX_TOKENS: usize = 75;

/// A prompt optimiser with its tokenizer.
#[derive(Debug)]
pub struct Promptist {
    model: Lm,
    tokenizer: Tokenizer,
}

impl Promptist {
    /// Opens `hf:OWNER/NAME[@REVISION]` or a folder with `config.json`, `model.safetensors` and
    /// `tokenizer.json`; the tokenizer may come from another one (Promptist uses GPT-2's).
    ///
    /// # Errors
    /// [`Error::Asset`] with what is absent or wrong, also when the tokenizer has more tokens than the
    /// model.
    pub fn open(spec: &str, tokenizer: Option<&str>, assets: &Assets) -> Result<Self> {
        let folder = ModelFolder::parse(spec, assets)?;
        let config = folder.file("config.json")?;
        folder.file("model.safetensors")?;
        let model = Lm::load(config.parent().unwrap_or(Path::new(".")))?;
        let folder = ModelFolder::parse(tokenizer.unwrap_or(spec), assets)?;
        let path = folder.file("tokenizer.json")?;
        let tokenizer = Tokenizer::from_json_file(&path)?;
        let (known, most) = (tokenizer.vocabulary_size(), model.config().vocab_size);
        if known > most {
            return Err(Error::asset(
                path.display().to_string(),
                format!("{known} tokens, the model has {most}"),
                "use the tokenizer that belongs to the model",
            ));
        }
        Ok(Self { model, tokenizer })
    }

    /// Up to `count` rewritings with their scores, best first: beam search as in Promptist.
    ///
    /// # Errors
    /// [`Error::Data`] when the prompt does not fit into the model's context.
    pub fn rewrite(
        &self,
        prompt: &str,
        count: usize,
        search: &SearchConfig,
    ) -> Result<Vec<(String, f64)>> {
        let text = format!("{}{SEPARATOR}", prompt.trim());
        let ids = self.tokenizer.encode(&text, Special::AsText)?;
        let context = self.model.config().max_position_embeddings;
        if ids.is_empty() || ids.len() >= context {
            return Err(Error::data(
                format!("a prompt of {} tokens", ids.len()),
                format!("1 to {} for this model", context - 1),
            ));
        }
        let eos = self.model.config().eos_token_id;
        let max_tokens = MAX_TOKENS.min(context - ids.len());
        let options = BeamOptions { max_tokens, eos, ..BeamOptions::default() };
        let found = search.run(&self.model, &ids, count, options, None)?;
        found
            .into_iter()
            .take(count)
            .map(|hypothesis| {
                let mut tokens = hypothesis.tokens;
                if tokens.last().copied() == eos {
                    tokens.pop();
                }
                Ok((self.tokenizer.decode(&tokens)?.trim().to_owned(), hypothesis.score))
            })
            .collect()
    }
}
