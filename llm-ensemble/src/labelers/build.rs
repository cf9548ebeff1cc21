//! Labelers from configuration.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::assets::Assets;
use common::encode::TextEncoder;
use common::llm::{EndpointOptions, Llm, LlmOptions};
use common::{Error, Result};

use super::{Keywords, Labeler, Logistic, Prompted, Recorded, Scoring, ZeroShot};
use crate::config::{Config, Features, LabelConfig, LabelerConfig, RecordedConfig};
use crate::data::{Examples, Product, Schema, read_examples, read_votes};

/// Opens what labelers share: each LLM and the encoder once.
pub struct Builder {
    assets: Assets,
    options: LlmOptions,
    llms: HashMap<String, Arc<Llm>>,
    encoder: Option<Arc<TextEncoder>>,
}

impl Builder {
    /// A builder that resolves models through `assets` and asks endpoints with the patience of
    /// `label`.
    pub fn new(assets: Assets, mut options: LlmOptions, label: &LabelConfig) -> Self {
        options.endpoint = EndpointOptions {
            attempt_timeout: Duration::from_secs(label.attempt_seconds),
            budget: Duration::from_secs(label.budget_seconds),
            attempts: label.attempts,
            backoff: Duration::from_millis(label.backoff_ms),
            ..options.endpoint
        };
        Self { assets, options, llms: HashMap::new(), encoder: None }
    }

    /// The LLM of `spec`, opened on first use.
    ///
    /// # Errors
    /// A malformed spec, a missing or invalid model.
    pub fn llm(&mut self, spec: &str) -> Result<Arc<Llm>> {
        if let Some(llm) = self.llms.get(spec) {
            return Ok(Arc::clone(llm));
        }
        let llm = Arc::new(Llm::open(&spec.parse()?, &self.options)?);
        self.llms.insert(spec.to_owned(), Arc::clone(&llm));
        Ok(llm)
    }

    /// MiniLM, opened on first use.
    ///
    /// # Errors
    /// A missing or invalid model.
    pub fn encoder(&mut self) -> Result<Arc<TextEncoder>> {
        if let Some(encoder) = &self.encoder {
            return Ok(Arc::clone(encoder));
        }
        let encoder = Arc::new(TextEncoder::minilm(&self.assets)?);
        self.encoder = Some(Arc::clone(&encoder));
        Ok(encoder)
    }

    /// One labeler that will be asked about `products`. `examples` replaces the files that the
    /// configuration names for training and in-context examples.
    ///
    /// # Errors
    /// A missing model, an unreadable train, pool or vote file.
    pub fn labeler(
        &mut self,
        labeler: &LabelerConfig,
        config: &Config,
        schema: &Schema,
        products: &[Product],
        examples: Option<&Examples>,
        seed: u64,
    ) -> Result<Box<dyn Labeler>> {
        let known = |path: &Path| match examples {
            Some(examples) => Ok(examples.clone()),
            None => read_examples(path, &config.input, schema),
        };
        let max_chars = config.label.max_chars;
        Ok(match labeler {
            LabelerConfig::Score(c) => {
                let scoring = Scoring::new(c, self.llm(&c.llm)?, max_chars).with_sample(products);
                if c.examples == 0 {
                    return Ok(Box::new(scoring));
                }
                let pool = known(c.pool.as_deref().unwrap_or(Path::new("")))?;
                Box::new(scoring.with_examples(&schema.attributes, &pool))
            }
            LabelerConfig::Prompt(c) => {
                let prompted = Prompted::new(c, self.llm(&c.llm)?, max_chars, seed);
                if c.examples == 0 {
                    return Ok(Box::new(prompted));
                }
                let pool = known(c.pool.as_deref().unwrap_or(Path::new("")))?;
                Box::new(prompted.with_examples(Arc::new(pool), self.encoder()?)?)
            }
            LabelerConfig::ZeroShot(c) => Box::new(ZeroShot::new(c, self.encoder()?, schema)?),
            LabelerConfig::Keywords(c) => Box::new(Keywords::new(c)),
            LabelerConfig::Logistic(c) => {
                let encoder = match c.features {
                    Features::Minilm => Some(self.encoder()?),
                    Features::Tfidf => None,
                };
                Box::new(Logistic::train(c, schema, &known(&c.train)?, encoder)?)
            }
            LabelerConfig::Recorded(c) => Box::new(recorded(c, config, schema)?),
        })
    }
}

/// All labelers of `config`, in its order.
///
/// # Errors
/// As [`Builder::labeler`]; no labeler at all.
pub fn build(
    builder: &mut Builder,
    config: &Config,
    schema: &Schema,
    products: &[Product],
    seed: u64,
) -> Result<Vec<Box<dyn Labeler>>> {
    if config.labelers.is_empty() {
        return Err(Error::usage(
            "no labeler: add [[labelers]] tables to the config (kinds: score, prompt, zero_shot, \
             keywords, logistic, recorded), or name an LLM with --llm",
        ));
    }
    config
        .labelers
        .iter()
        .map(|l| builder.labeler(l, config, schema, products, None, seed))
        .collect()
}

fn recorded(c: &RecordedConfig, config: &Config, schema: &Schema) -> Result<Recorded> {
    let (attributes, _) = read_votes(&c.file, &config.input, None)?;
    let mut records = Vec::new();
    for (name, votes) in &attributes {
        // A file without an attribute column answers the only attribute of the schema.
        let name = if name.is_empty() { &schema.attributes[0].name } else { name };
        let Some(worker) = votes.workers.position(&c.name) else { continue };
        for (item, by, label) in votes.rows() {
            if by as usize == worker {
                let item = votes.items.name(item as usize);
                records.push((name.clone(), item, votes.labels.name(label as usize)));
            }
        }
    }
    if records.is_empty() {
        return Err(Error::data(
            format!("no answer of worker {:?}", c.name),
            "a vote file that holds answers of this labeler",
        )
        .in_file(&c.file));
    }
    Ok(Recorded::new(&c.name, records))
}
