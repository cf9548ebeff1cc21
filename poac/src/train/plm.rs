//! Stage I: supervised fine-tuning of the prompt language model (Eqs. 1 and 2).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use common::lm::{Lm, LmConfig, Pass};
use common::optim::Gradients;
use common::rng::Seed;
use common::{Error, Result, ops};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{History, Pace, SLICES, train};
use crate::data::pairs::{Example, PairSource};
use crate::data::{Vocabulary, World};
use crate::features::Features;

/// Size of the prompt language model (GPT-2's shape) and its training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlmOptions {
    /// Width; also that of the word features.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Longest text in tokens.
    pub context: usize,
    /// Start from word features (`true`, ours) or from random token vectors (`false`).
    pub word_features: bool,
    /// Share of the pairs that are drawn from abstract concepts; the others come from all keywords.
    pub abstract_share: f64,
    /// Training.
    pub pace: Pace,
}

impl Default for PlmOptions {
    fn default() -> Self {
        Self {
            width: 128,
            layers: 2,
            heads: 4,
            context: 48,
            word_features: true,
            abstract_share: 0.2,
            pace: Pace { steps: 400, ..Pace::default() },
        }
    }
}

/// The untrained model: GPT-2's initialisation, its token table replaced by the word features.
///
/// # Errors
/// [`Error::Usage`] on sizes that do not fit together.
pub fn new_model(features: &Features, options: &PlmOptions, seed: Seed) -> Result<Lm> {
    let vocabulary = features.vocabulary().len();
    let mut config =
        LmConfig::gpt2(vocabulary, options.width, options.layers, options.heads, options.context);
    config.eos_token_id = Some(Vocabulary::EOS);
    let model = Lm::new(&config, seed)?;
    if !options.word_features {
        return Ok(model);
    }
    if features.width() != options.width {
        return Err(Error::usage(format!(
            "plm.width {}: the word features have {} values, use the same",
            options.width,
            features.width()
        )));
    }
    let mut tensors: BTreeMap<String, Tensor> = model.parameters().tensors();
    let rows: Vec<f32> =
        (0..vocabulary).flat_map(|id| features.token(id as u32).to_vec()).collect();
    let table = Tensor::from_vec(rows, (vocabulary, options.width), &Device::Cpu)?;
    tensors.insert("transformer.wte.weight".into(), table);
    Lm::from_tensors(&config, tensors)
}

/// Eq. 1 on a batch: mean cross-entropy of the tokens of y and the end; x and the padding are left
/// out.
///
/// # Errors
/// [`Error::Data`] when a text is longer than the context.
pub fn sft_loss(model: &Lm, batch: &[Example]) -> Result<Tensor> {
    let longest = batch.iter().map(|example| example.ids.len()).max().unwrap_or(0);
    let (mut ids, mut labels) = (Vec::new(), Vec::new());
    for example in batch {
        let padding = longest - example.ids.len();
        ids.extend(example.ids.iter().copied());
        ids.extend(std::iter::repeat_n(Vocabulary::EOS, padding));
        let answer = example.ids[example.prompt..].iter().map(|&id| i64::from(id));
        labels.extend(std::iter::repeat_n(ops::IGNORE_INDEX, example.prompt));
        labels.extend(answer);
        labels.extend(std::iter::repeat_n(ops::IGNORE_INDEX, padding));
    }
    let shape = (batch.len(), longest);
    let ids = Tensor::from_vec(ids, shape, &Device::Cpu)?;
    let labels = Tensor::from_vec(labels, shape, &Device::Cpu)?;
    model.loss(&ids, &labels, Pass::default())
}

/// Trains on pairs drawn from keywords. With word features the rows of words that are no object
/// names stay as they are, so that words which training never sees keep their meaning.
///
/// # Errors
/// Those of [`train`].
pub fn fit(
    model: &Lm,
    world: &World,
    features: &Features,
    options: &PlmOptions,
    shuffle: bool,
    seed: Seed,
    work: &Path,
) -> Result<History> {
    let mut stream = seed.stream("plm/shuffle");
    let mut source = PairSource::new(world, features.vocabulary(), shuffle.then_some(&mut stream));
    source.abstract_share = options.abstract_share;
    let rows = options.pace.batch / SLICES;
    let loss = |step: u64, slice: usize| {
        let mut stream = seed.stream(&format!("plm/{step}/{slice}"));
        let batch: Vec<Example> = (0..rows).map(|_| source.draw(&mut stream)).collect();
        Ok((sft_loss(model, &batch)? / SLICES as f64)?)
    };
    let mask = if options.word_features { Some(name_rows(world, features)?) } else { None };
    let adjust = |gradients: Gradients| {
        let Some(mask) = &mask else { return Ok(gradients) };
        let tensors = model.parameters().iter().zip(gradients.tensors());
        let tensors = tensors.map(|((name, _), gradient)| match name {
            "transformer.wte.weight" => Ok(gradient.broadcast_mul(mask)?),
            _ => Ok(gradient.clone()),
        });
        Gradients::from_tensors(tensors.collect::<Result<_>>()?, model.parameters())
    };
    let pace = if options.word_features {
        Pace { weight_decay: 0.0, ..options.pace.clone() }
    } else {
        options.pace.clone()
    };
    train("plm", model.parameters(), &pace, None, work, adjust, loss)
}

/// `[tokens, 1]`: 1 where a token is an object's name or a template word.
fn name_rows(world: &World, features: &Features) -> Result<Tensor> {
    let vocabulary = features.vocabulary();
    let names: BTreeSet<&str> = world.objects.iter().map(|object| object.name.as_str()).collect();
    let trained = |id: usize, token: &str| {
        names.contains(token) || !vocabulary.is_content(id as u32) || id < 20
    };
    let values: Vec<f32> = vocabulary
        .tokens()
        .iter()
        .enumerate()
        .map(|(id, token)| f32::from(u8::from(trained(id, token))))
        .collect();
    let count = values.len();
    Ok(Tensor::from_vec(values, (count, 1), &Device::Cpu)?.to_dtype(DType::F32)?)
}
