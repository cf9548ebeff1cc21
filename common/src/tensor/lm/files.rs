//! Folders that transformers opens, and adapters that peft opens.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use super::{Lm, LmConfig};
use crate::nn::{Builder, LoraOptions, Parameters};
use crate::rng::Seed;
use crate::tensor::checkpoint::write_atomically;
use crate::{Error, Result};

impl Lm {
    /// Reads `config.json` and `model.safetensors` of a folder.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        Self::from_tensors(&LmConfig::from_json(&text)?, read(&folder.join("model.safetensors"))?)
    }

    /// Writes `config.json` and `model.safetensors` (f32), each replaced as a whole. Adapters are
    /// left out: merge them first or save them with [`save_lora`].
    pub fn save(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        write(&folder.join("model.safetensors"), &self.parameters.tensors())?;
        write_json(&folder.join("config.json"), &self.config.to_json())
    }

    /// Freezes the model and gives its target layers adapters drawn from `seed`; returns the adapters'
    /// parameters under peft's names. The model's function stays the same until they are trained.
    pub fn attach_lora(&mut self, options: &LoraOptions, seed: Seed) -> Result<Parameters> {
        self.attach(options, Builder::seeded(seed))
    }

    /// Like [`Lm::attach_lora`] with the adapters of a file that peft or [`save_lora`] wrote.
    pub fn load_lora(&mut self, options: &LoraOptions, path: &Path) -> Result<Parameters> {
        self.attach(options, Builder::from_tensors(read(path)?))
    }

    fn attach(&mut self, options: &LoraOptions, mut builder: Builder) -> Result<Parameters> {
        let targeted = |name: &str| {
            let last = name.rsplit('.').next().unwrap_or(name);
            options.targets.iter().any(|target| target == last)
        };
        let mut changed = self.clone();
        let mut count = 0;
        for (name, linear) in changed.linears_mut() {
            if targeted(&name) {
                builder.within(format!("base_model.model.{name}"), |b| {
                    linear.attach_lora(b, options.rank, options.alpha)
                })?;
                count += 1;
            }
        }
        if count == 0 {
            let targets = options.targets.join(", ");
            return Err(Error::usage(format!("no layer of this model is called {targets}")));
        }
        *self = changed;
        Ok(builder.finish())
    }

    /// Adds the adapters' updates to the weights and removes the adapters; the weights are trainable
    /// again.
    pub fn merge_lora(&mut self) -> Result<()> {
        let parameters = self.parameters.clone();
        for (name, linear) in self.linears_mut() {
            if !linear.has_lora() {
                continue;
            }
            let of = |part: &str| parameters.get(&format!("{name}.{part}"));
            let weight = of("weight").ok_or_else(|| Error::Bug(format!("{name} has no weight")))?;
            weight.set(&linear.merged_weight()?)?;
            linear.restore(weight.as_tensor().clone(), of("bias").map(|v| v.as_tensor().clone()));
        }
        Ok(())
    }
}

/// Writes adapters as peft does: `adapter_model.safetensors` and `adapter_config.json`.
pub fn save_lora(folder: &Path, options: &LoraOptions, adapters: &Parameters) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    write(&folder.join("adapter_model.safetensors"), &adapters.tensors())?;
    let gpt2 = adapters.iter().any(|(name, _)| name.contains(".transformer.h."));
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": options.rank,
        "lora_alpha": options.alpha,
        "target_modules": options.targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": gpt2,
        "inference_mode": true,
    });
    write_json(&folder.join("adapter_config.json"), &config)
}

fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|error| {
        Error::asset(path.display().to_string(), error.to_string(), "fetch or write it again")
    })?;
    Ok(tensors.into_iter().collect())
}

fn write(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    // transformers refuses a file that does not say where it comes from
    let origin = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(tensors, Some(origin))
        .map_err(|error| Error::Bug(format!("{}: {error}", path.display())))?;
    write_atomically(path, &bytes)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|error| Error::Bug(error.to_string()))?;
    write_atomically(path, &text)
}
