//! Where relation networks come from: bundled weights, a file of `fit`, or the cache.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use common::assets::Assets;
use common::checkpoint::Trained;
use common::nn::Builder;
use common::rng::Seed;
use common::weights::Safetensors;
use common::{Result, files};

use crate::config::Config;
use crate::model::denoiser::Denoiser;
use crate::model::sampler::Sampler;
use crate::train::{self, TrainConfig};

/// Weights of `layoutagent fit` with the default config and seed 0.
const BUNDLED: &[u8] = include_bytes!("../weights/relations.safetensors");

/// Raised whenever the training code changes.
const CODE: u32 = 1;

/// A sampler over the networks that `config` names.
///
/// # Errors
/// A weights file that does not fit `config.train`; those of training.
pub fn sampler(config: &Config, seed: u64, threads: usize, assets: &Assets) -> Result<Sampler> {
    let tensors = match &config.weights {
        Some(path) => Safetensors::open(path)?.float_tensors()?.into_iter().collect(),
        None if config.train == TrainConfig::default() => {
            let file = Safetensors::from_bytes(BUNDLED.to_vec(), Path::new("bundled weights"))?;
            file.float_tensors()?.into_iter().collect()
        }
        None => trained(&config.train, seed, threads, assets)?,
    };
    ready(tensors, &config.train)
}

/// A sampler of trained tensors.
///
/// # Errors
/// Tensors that do not fit the config.
pub fn ready(tensors: BTreeMap<String, Tensor>, config: &TrainConfig) -> Result<Sampler> {
    let mut builder = Builder::from_tensors(tensors).frozen();
    let model = Denoiser::new(&mut builder, config.width)?;
    match config.energy {
        true => Sampler::of_energy(model, config.steps),
        false => Sampler::new(&model, config.steps),
    }
}

/// Tensors trained now, or earlier and kept in the cache.
///
/// # Errors
/// Those of training and of the cache.
pub fn trained(
    config: &TrainConfig,
    seed: u64,
    threads: usize,
    assets: &Assets,
) -> Result<BTreeMap<String, Tensor>> {
    // Known to the cache already, this returns at once; otherwise it takes minutes.
    tracing::info!("relation networks: {} updates, kept in the cache", config.updates);
    let folder = assets.options().cache.join("trained");
    let key = (config, seed, CODE);
    let (tensors, _) = Trained::new(&folder).get_or_train("layoutagent-relations", &key, |_| {
        let mut history = Vec::new();
        let trained = train::train(config, Seed::new(seed), threads, |update, loss| {
            tracing::info!("update {update}: loss {loss:.4}");
            history.push((update, loss));
        })?;
        Ok((trained.tensors(), history))
    })?;
    Ok(tensors)
}

/// Writes tensors as a safetensors file, all at once.
///
/// # Errors
/// [`common::Error::Io`].
pub fn save(tensors: &BTreeMap<String, Tensor>, path: &Path) -> Result<()> {
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    for (name, tensor) in tensors {
        let start = data.len();
        for value in tensor.flatten_all()?.to_vec1::<f32>()? {
            data.extend(value.to_le_bytes());
        }
        let entry = serde_json::json!({
            "dtype": "F32", "shape": tensor.dims(), "data_offsets": [start, data.len()],
        });
        header.insert(name.clone(), entry);
    }
    let mut text = serde_json::Value::Object(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.extend(data);
    files::atomic_write(path, &bytes)
}
