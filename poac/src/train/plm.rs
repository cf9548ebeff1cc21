//! Stage I: supervised fine-tuning of the prompt language model (Eqs. 1 and 2).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use common::lm::{Lm, LmConfig, Pass};
use common::nn::Parameters;
use common::optim::Gradients;
use common::rng::{Seed, Stream};
use common::{Error, Result, ops};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{History, Pace, SLICES, train};
use crate::data::pairs::{Example, PairSource};
use crate::data::{Vocabulary, World};
use crate::features::Features;
use crate::model::scorer::unit;

/// The token table's name in transformers.
const TABLE: &str = "transformer.wte.weight";

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
    /// Token vectors are word features (`true`, ours) or random (`false`).
    pub word_features: bool,
    /// Share of the pairs that are drawn from abstract concepts; the others come from all keywords.
    pub abstract_share: f64,
    /// Length of a random vector that training adds to every word vector of x (ours), so that words
    /// near a known one lead to the same objects; word features have length 1.
    pub noise: f64,
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
            noise: 0.0,
            pace: Pace { steps: 400, ..Pace::default() },
        }
    }
}

/// The untrained model: GPT-2's initialisation, its token table replaced by the word features or by
/// random vectors of the same length.
///
/// # Errors
/// [`Error::Usage`] on sizes that do not fit together.
pub fn new_model(features: &Features, options: &PlmOptions, seed: Seed) -> Result<Lm> {
    let vocabulary = features.vocabulary().len();
    let mut config =
        LmConfig::gpt2(vocabulary, options.width, options.layers, options.heads, options.context);
    config.eos_token_id = Some(Vocabulary::EOS);
    let table = if !options.word_features {
        let shape = (vocabulary, options.width);
        unit(&seed.stream("plm/table").normal_tensor(shape, 1.0)?)?
    } else if features.width() == options.width {
        features.rows(0)?
    } else {
        return Err(Error::usage(format!(
            "plm.width {}: the word features have {} values, use the same",
            options.width,
            features.width()
        )));
    };
    let mut tensors = Lm::new(&config, seed)?.parameters().tensors();
    tensors.insert(TABLE.into(), table);
    Lm::from_tensors(&config, tensors)
}

/// Eq. 1 on a batch: mean cross-entropy of the tokens of y and the end; x and the padding are left
/// out.
///
/// # Errors
/// [`Error::Data`] when a text is longer than the context.
pub fn sft_loss(model: &Lm, batch: &[Example]) -> Result<Tensor> {
    noisy_sft_loss(model, batch, 0.0, &mut Seed::new(0).stream("no noise"))
}

/// [`sft_loss`] with a random vector of length `noise` added to every token vector of x.
///
/// # Errors
/// As [`sft_loss`].
pub fn noisy_sft_loss(
    model: &Lm,
    batch: &[Example],
    noise: f64,
    stream: &mut Stream,
) -> Result<Tensor> {
    let longest = batch.iter().map(|example| example.ids.len()).max().unwrap_or(0);
    let shape = (batch.len(), longest);
    // only positions whose next token belongs to y get logits
    let (mut ids, mut places, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    for example in batch {
        for at in example.prompt..example.ids.len() {
            places.push((ids.len() + at - 1) as u32);
            targets.push(example.ids[at]);
        }
        ids.extend(&example.ids);
        ids.extend(std::iter::repeat_n(Vocabulary::EOS, longest - example.ids.len()));
    }
    let ids = Tensor::from_vec(ids, shape, &Device::Cpu)?;
    let inputs = match noise {
        0.0 => None,
        noise => Some((model.embedding().forward(&ids)? + noise_of(model, batch, noise, stream)?)?),
    };
    let places = Tensor::new(&places[..], &Device::Cpu)?;
    let pass = Pass { inputs: inputs.as_ref(), rows: Some(&places), ..Pass::default() };
    let hidden = model.hidden(&ids, pass)?;
    let targets = Tensor::new(&targets[..], &Device::Cpu)?;
    Ok(ops::linear_cross_entropy(&hidden, model.output_weight(), None, &targets)?)
}

/// Random vectors of mean length `noise` at the tokens of x, zeros elsewhere: `[batch, tokens, width]`.
fn noise_of(model: &Lm, batch: &[Example], noise: f64, stream: &mut Stream) -> Result<Tensor> {
    let longest = batch.iter().map(|example| example.ids.len()).max().unwrap_or(0);
    let width = model.config().hidden_size;
    let sd = noise / (width as f64).sqrt();
    let mut added = vec![0f32; batch.len() * longest * width];
    for (row, example) in added.chunks_exact_mut(longest * width).zip(batch) {
        let values = row[..example.prompt * width].iter_mut();
        values.for_each(|value| *value = (sd * stream.normal()) as f32);
    }
    Ok(Tensor::from_vec(added, (batch.len(), longest, width), &Device::Cpu)?)
}

/// Trains on pairs drawn from keywords. The rows of words that are no object names stay as they are,
/// so that words which training never sees keep their meaning.
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
    let vocabulary = features.vocabulary();
    let mut stream = seed.stream("plm/shuffle");
    let mut source = PairSource::new(world, vocabulary, shuffle.then_some(&mut stream));
    source.abstract_share = options.abstract_share;
    let rows = options.pace.batch / SLICES;
    let loss = |step: u64, slice: usize| {
        let mut stream = seed.stream(&format!("plm/{step}/{slice}"));
        let batch: Vec<Example> = (0..rows).map(|_| source.draw(&mut stream)).collect();
        let value = noisy_sft_loss(model, &batch, options.noise, &mut stream)?;
        Ok((value / SLICES as f64)?)
    };
    let mask = first_rows(vocabulary.first_word(), vocabulary.len())?;
    let adjust = |gradients: Gradients| masked(&gradients, model.parameters(), &mask);
    // weight decay would shrink the rows that stay
    let pace = Pace { weight_decay: 0.0, ..options.pace.clone() };
    train("plm", model.parameters(), &pace, None, work, adjust, loss)
}

/// `[tokens, 1]`: 1 in the first `rows` rows of the token table, 0 in the others.
pub(super) fn first_rows(rows: usize, tokens: usize) -> Result<Tensor> {
    let values: Vec<f32> = (0..tokens).map(|id| f32::from(u8::from(id < rows))).collect();
    Ok(Tensor::from_vec(values, (tokens, 1), &Device::Cpu)?)
}

/// Gradients with the token table's times `mask`.
pub(super) fn masked(
    gradients: &Gradients,
    parameters: &Parameters,
    mask: &Tensor,
) -> Result<Gradients> {
    let tensors = parameters.iter().zip(gradients.tensors());
    let tensors = tensors.map(|((name, _), gradient)| match name {
        TABLE => Ok(gradient.broadcast_mul(mask)?),
        _ => Ok(gradient.clone()),
    });
    Gradients::from_tensors(tensors.collect::<Result<_>>()?, parameters)
}

/// The tensors that training changes: of the token table only the first `rows`.
///
/// # Errors
/// None but bugs.
pub fn trained_tensors(model: &Lm, rows: usize) -> Result<BTreeMap<String, Tensor>> {
    let part = |(name, tensor): (String, Tensor)| {
        let tensor = if name == TABLE { tensor.narrow(0, 0, rows)? } else { tensor };
        Ok((name, tensor.copy()?))
    };
    model.parameters().tensors().into_iter().map(part).collect()
}

/// The model with the tensors that [`trained_tensors`] gave; `fresh` has the other rows.
///
/// # Errors
/// None but bugs.
pub fn with_trained(fresh: &Lm, mut tensors: BTreeMap<String, Tensor>) -> Result<Lm> {
    if let (Some(trained), Some(all)) = (tensors.get_mut(TABLE), fresh.parameters().get(TABLE)) {
        let rows = trained.dim(0)?;
        *trained = Tensor::cat(&[&*trained, &all.narrow(0, rows, all.dim(0)? - rows)?], 0)?;
    }
    Lm::from_tensors(fresh.config(), tensors)
}
