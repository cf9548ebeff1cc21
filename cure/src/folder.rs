//! A recommender on disk: `config.json` and `model.safetensors` as transformers reads them, and
//! `cure.json` with what it was fitted on and what it has forgotten since.

use std::path::Path;

use candle_core::Device;
use common::files::atomic_write;
use common::lm::{Lm, LmConfig};
use common::rng::Seed;
use common::weights::Safetensors;
use common::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::config::DataConfig;
use crate::data::{Deletion, Interactions};
use crate::prompt::Vocabulary;
use crate::stages::Setting;

const ABOUT: &str = "cure.json";

/// What a model was fitted on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Seed of split and training.
    pub seed: u64,
    /// How the data was split and put into prompts.
    pub data: DataConfig,
    /// Words and title tokens.
    pub vocabulary: Vocabulary,
    /// Deletion requests so far, in words.
    pub forgotten: Vec<String>,
    /// All events forgotten so far: user number and event number in the user's history.
    pub events: Vec<(usize, usize)>,
}

impl About {
    /// Of a model that has forgotten nothing yet.
    pub fn new(seed: u64, data: &DataConfig, setting: &Setting) -> Self {
        Self {
            seed,
            data: data.clone(),
            vocabulary: setting.vocabulary.clone(),
            forgotten: Vec::new(),
            events: Vec::new(),
        }
    }

    /// The setting of the same data, without what was forgotten.
    ///
    /// # Errors
    /// [`Error::Data`] when the data is not what the model was fitted on.
    pub fn setting(&self, data: Interactions) -> Result<Setting> {
        let mut setting = Setting::new(&self.data, data, Seed::new(self.seed))?;
        if setting.vocabulary != self.vocabulary {
            return Err(Error::data(
                format!(
                    "{} items with {} words",
                    setting.vocabulary.items(),
                    setting.vocabulary.len()
                ),
                format!(
                    "the data that the model was fitted on: {} items with {} words",
                    self.vocabulary.items(),
                    self.vocabulary.len()
                ),
            ));
        }
        for &(user, event) in &self.events {
            let flag = setting.mask.get_mut(user).and_then(|flags| flags.get_mut(event));
            let known = flag.ok_or_else(|| {
                Error::data(
                    format!("a forgotten event {event} of user number {user}"),
                    "the data that the model was fitted on",
                )
            })?;
            *known = false;
        }
        Ok(setting)
    }

    /// Notes a deletion.
    pub fn forget(&mut self, request: &str, deletion: &Deletion) {
        self.forgotten.push(request.to_owned());
        for (user, flags) in deletion.flags().iter().enumerate() {
            self.events.extend((0..flags.len()).filter(|&e| flags[e]).map(|event| (user, event)));
        }
    }
}

/// Writes a model; every file is replaced as a whole.
///
/// # Errors
/// [`Error::Io`].
pub fn save(folder: &Path, lm: &Lm, about: &About) -> Result<()> {
    lm.save(folder)?;
    atomic_write(&folder.join(ABOUT), common::cli::text::json(about)?.as_bytes())
}

/// Reads a model that [`save`] wrote.
///
/// # Errors
/// [`Error::Asset`] that names the tensor when one is missing, has another shape, or is not known
/// to a model of this configuration; [`Error::Io`].
pub fn load(folder: &Path) -> Result<(Lm, About)> {
    let path = folder.join(ABOUT);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let about = serde_json::from_str(&text).map_err(|error| {
        Error::data(error.to_string(), "a description that `cure fit` wrote").in_file(&path)
    })?;
    Ok((checkpoint(folder)?, about))
}

/// Reads `config.json` and `model.safetensors` of a GPT-2- or Llama-shaped decoder, strictly.
///
/// # Errors
/// As [`load`].
pub fn checkpoint(folder: &Path) -> Result<Lm> {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let config = LmConfig::from_json(&text)?;
    let path = folder.join("model.safetensors");
    let file = Safetensors::open(&path)?;
    let tensors: std::collections::BTreeMap<_, _> = file.float_tensors()?.into_iter().collect();
    let lm = Lm::from_tensors(&config, tensors.clone())?;
    let known = |name: &str| {
        let prefixed = format!("transformer.{name}");
        lm.parameters().iter().any(|(known, _)| known == name || known == prefixed)
            // a tied output layer is stored by some writers, and equals the embedding
            || (config.tie_word_embeddings && name == "lm_head.weight")
            // GPT-2's causal masks
            || name.ends_with(".attn.bias")
            || name.ends_with(".attn.masked_bias")
    };
    if let Some(name) = tensors.keys().find(|name| !known(name)) {
        return Err(Error::asset(
            path.display().to_string(),
            format!("the tensor {name} belongs to no part of a model of this config.json"),
            "use the config.json that belongs to the weights",
        ));
    }
    debug_assert!(tensors.values().all(|tensor| tensor.device().same_device(&Device::Cpu)));
    Ok(lm)
}
