//! The latent denoiser ε_θ(z_t, t, τ(y)): a transformer over patch codes that attends to the words
//! of the prompt (DiT, Peebles and Xie 2023, with shared modulation as in PixArt-α).
//!
//! A word that names a known picture brings that picture's code with it, so the model does not have
//! to learn 1,315 pictures by heart (retrieval-augmented diffusion, Blattmann et al. 2022). Each patch
//! attends to the same patch of the named pictures. Other words bring their feature alone.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use common::nn::{Builder, Init, LayerNorm, Linear, Parameters};
use common::ops::{self, Activation, AttentionOptions};
use common::rng::Seed;
use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Values of the sinusoidal time code.
const TIME: usize = 64;

/// Sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DenoiserOptions {
    /// Width of the tokens.
    pub width: usize,
    /// Blocks.
    pub blocks: usize,
    /// Attention heads; divides the width.
    pub heads: usize,
    /// Values of a patch code.
    pub components: usize,
}

impl Default for DenoiserOptions {
    fn default() -> Self {
        Self { width: 128, blocks: 4, heads: 4, components: 48 }
    }
}

/// A word of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Word {
    /// Its feature.
    pub feature: Vec<f32>,
    /// The picture that it names, as a row of the denoiser's memory.
    pub picture: Option<usize>,
}

/// The words of a batch of prompts as features: the text encoder's output τ(y).
#[derive(Debug, Clone)]
pub struct TextBatch {
    /// `[batch, words, features]`
    pub features: Tensor,
    /// `[batch, words]`: 0 = names no picture, otherwise the picture's number plus 1.
    pub pictures: Tensor,
    /// `[batch, words]`, 1 = a word.
    pub mask: Tensor,
}

impl TextBatch {
    /// Pads rows of word features with zeros. Every row needs a word.
    pub fn new(rows: &[Vec<Word>]) -> Result<Self> {
        let most = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = rows.first().and_then(|row| row.first()).map_or(0, |word| word.feature.len());
        if width == 0 || rows.iter().any(Vec::is_empty) {
            return Err(Error::Bug("a prompt without words".into()));
        }
        let mut features = Vec::with_capacity(rows.len() * most * width);
        let mut mask = Vec::with_capacity(rows.len() * most);
        let mut pictures = Vec::with_capacity(rows.len() * most);
        for row in rows {
            for at in 0..most {
                match row.get(at) {
                    Some(word) => features.extend_from_slice(&word.feature),
                    None => features.resize(features.len() + width, 0.0),
                }
                let picture = row.get(at).and_then(|word| word.picture);
                pictures.push(picture.map_or(0, |at| at as u32 + 1));
                mask.push(f32::from(u8::from(at < row.len())));
            }
        }
        let shape = (rows.len(), most, width);
        Ok(Self {
            features: Tensor::from_vec(features, shape, &Device::Cpu)?,
            pictures: Tensor::from_vec(pictures, (rows.len(), most), &Device::Cpu)?,
            mask: Tensor::from_vec(mask, (rows.len(), most), &Device::Cpu)?,
        })
    }

    /// Rows `first..first + count`.
    pub fn narrow(&self, first: usize, count: usize) -> Result<Self> {
        Ok(Self {
            features: self.features.narrow(0, first, count)?,
            pictures: self.pictures.narrow(0, first, count)?,
            mask: self.mask.narrow(0, first, count)?,
        })
    }

    /// Mean of each row's word features, `[batch, features]`.
    pub fn mean(&self) -> Result<Tensor> {
        let mask = self.mask.unsqueeze(2)?;
        let sum = self.features.broadcast_mul(&mask)?.sum(1)?;
        Ok(sum.broadcast_div(&mask.sum(1)?)?)
    }
}

#[derive(Debug, Clone)]
struct Block {
    norm: [LayerNorm; 3],
    /// Offsets of the shared modulation, `[6 · width]`.
    offsets: Tensor,
    to_qkv: Linear,
    to_out: Linear,
    to_q: Linear,
    to_kv: Linear,
    to_out2: Linear,
    up: Linear,
    down: Linear,
}

/// ε_θ over patch codes.
#[derive(Debug, Clone)]
pub struct Denoiser {
    options: DenoiserOptions,
    input: Linear,
    positions: Tensor,
    text: [Linear; 2],
    recall: Linear,
    /// Codes of the known pictures after a row of zeros, `[pictures + 1, tokens · components]`.
    memory: Tensor,
    pooled: Linear,
    time: [Linear; 2],
    modulation: Linear,
    blocks: Vec<Block>,
    norm: LayerNorm,
    output: Linear,
    parameters: Parameters,
}

impl Denoiser {
    /// New weights for `features` text features and the codes `[pictures, tokens, components]` of
    /// the pictures that words name.
    pub fn new(
        options: &DenoiserOptions,
        codes: &Tensor,
        features: usize,
        seed: Seed,
    ) -> Result<Self> {
        Self::build(options, &memory(codes)?, features, Builder::seeded(seed))
    }

    /// Weights of a file.
    pub fn from_tensors(
        options: &DenoiserOptions,
        codes: &Tensor,
        features: usize,
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        Self::build(options, &memory(codes)?, features, Builder::from_tensors(tensors))
    }

    fn build(
        options: &DenoiserOptions,
        memory: &Tensor,
        features: usize,
        mut builder: Builder,
    ) -> Result<Self> {
        let (d, c) = (options.width, options.components);
        let tokens = memory.dim(1)? / c.max(1);
        if options.heads == 0 || d % options.heads != 0 {
            return Err(Error::usage(format!(
                "denoiser.heads {}: use a divisor of denoiser.width {d}",
                options.heads
            )));
        }
        let b = &mut builder;
        let linear = |b: &mut Builder, name: &str, inputs: usize, outputs: usize| {
            b.within(name, |b| Linear::new(b, inputs, outputs, true))
        };
        // outputs of residual branches start small, as in DiT
        let quiet = |b: &mut Builder, name: &str, inputs: usize, outputs: usize| {
            let bias = Some(Init::Constant(0.0));
            b.within(name, |b| Linear::with_init(b, inputs, outputs, bias, Init::Normal(0.02)))
        };
        let norm = |b: &mut Builder, name: &str| b.within(name, |b| LayerNorm::new(b, d, 1e-5));
        let block = |b: &mut Builder| {
            Ok(Block {
                norm: [norm(b, "norm1")?, norm(b, "norm2")?, norm(b, "norm3")?],
                offsets: b.tensor("offsets", 6 * d, Init::Normal(0.02))?,
                to_qkv: linear(b, "attn1.to_qkv", d, 3 * d)?,
                to_out: quiet(b, "attn1.to_out", d, d)?,
                to_q: linear(b, "attn2.to_q", d, d)?,
                to_kv: linear(b, "attn2.to_kv", d, 2 * d)?,
                to_out2: quiet(b, "attn2.to_out", d, d)?,
                up: linear(b, "mlp.up", d, 4 * d)?,
                down: quiet(b, "mlp.down", 4 * d, d)?,
            })
        };
        let built = Self {
            options: options.clone(),
            input: linear(b, "input", c, d)?,
            positions: b.tensor("positions", (tokens, d), Init::Normal(0.5))?,
            text: [linear(b, "text.0", features, d)?, linear(b, "text.1", d, d)?],
            recall: linear(b, "recall", c, d)?,
            memory: memory.clone(),
            pooled: linear(b, "pooled", features, d)?,
            time: [linear(b, "time.0", TIME, d)?, linear(b, "time.1", d, d)?],
            modulation: quiet(b, "modulation", d, 6 * d)?,
            blocks: (0..options.blocks)
                .map(|at| b.within(format!("blocks.{at}"), block))
                .collect::<Result<_>>()?,
            norm: norm(b, "norm")?,
            output: quiet(b, "output", d, c)?,
            parameters: Parameters::default(),
        };
        Ok(Self { parameters: builder.finish(), ..built })
    }

    /// The trainable tensors without adapters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Freezes the weights and puts adapters of scale 1 on the attention layers (`to_qkv`, `to_q`,
    /// `to_kv`, `to_out`), or on all linear layers; returns the adapters' parameters. The function
    /// stays the same until they train.
    pub fn attach_lora(&mut self, rank: usize, all: bool, seed: Seed) -> Result<Parameters> {
        self.attach(rank, all, Builder::seeded(seed))
    }

    /// [`Denoiser::attach_lora`] with trained adapters.
    pub fn load_lora(
        &mut self,
        rank: usize,
        all: bool,
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<Parameters> {
        self.attach(rank, all, Builder::from_tensors(tensors))
    }

    fn attach(&mut self, rank: usize, all: bool, mut builder: Builder) -> Result<Parameters> {
        let b = &mut builder;
        let alpha = rank as f64;
        let frozen = self.parameters.tensors();
        let options = self.options.clone();
        let features = self.pooled.sizes().0;
        let base = Builder::from_tensors(frozen).frozen();
        let mut model = Self::build(&options, &self.memory, features, base)?;
        for (at, block) in model.blocks.iter_mut().enumerate() {
            let layers: [(&str, &mut Linear); 5] = [
                ("attn1.to_qkv", &mut block.to_qkv),
                ("attn1.to_out", &mut block.to_out),
                ("attn2.to_q", &mut block.to_q),
                ("attn2.to_kv", &mut block.to_kv),
                ("attn2.to_out", &mut block.to_out2),
            ];
            let others = [("mlp.up", &mut block.up), ("mlp.down", &mut block.down)];
            for (name, layer) in layers.into_iter().chain(others.into_iter().filter(|_| all)) {
                b.within(format!("blocks.{at}.{name}"), |b| layer.attach_lora(b, rank, alpha))?;
            }
        }
        if all {
            let [text0, text1] = &mut model.text;
            let layers = [
                ("text.0", text0),
                ("text.1", text1),
                ("recall", &mut model.recall),
                ("pooled", &mut model.pooled),
                ("modulation", &mut model.modulation),
                ("output", &mut model.output),
            ];
            for (name, layer) in layers {
                b.within(name, |b| layer.attach_lora(b, rank, alpha))?;
            }
        }
        *self = model;
        Ok(builder.finish())
    }

    /// `z` `[batch, tokens, components]` at one time per row → the prediction, same shape.
    pub fn forward(&self, z: &Tensor, times: &[usize], text: &TextBatch) -> Result<Tensor> {
        let (batch, tokens, _) = z.dims3()?;
        let d = self.options.width;
        let heads = self.options.heads;
        let time = self.time[0].forward_activation(&time_code(times)?, Some(Activation::Silu))?;
        let time = (self.time[1].forward(&time)? + self.pooled.forward(&text.mean()?)?)?;
        let shared = self.modulation.forward(&Activation::Silu.apply(&time)?)?;
        let words = self.text[0].forward_activation(&text.features, Some(Activation::Silu))?;
        let words = self.text[1].forward(&words)?;
        let count = words.dim(1)?;
        let dim = d / heads;
        // patch by patch: `[batch · tokens, words, width]`
        let named = ops::embedding(&self.memory, &text.pictures)?;
        let named = named.reshape((batch, count, tokens, self.options.components))?;
        let named = named.transpose(1, 2)?.contiguous()?;
        let words = self.recall.forward(&named)?.broadcast_add(&words.unsqueeze(1)?)?;
        let words = words.reshape((batch * tokens, count, d))?;
        let mask = text.mask.unsqueeze(1)?.broadcast_as((batch, tokens, count))?;
        let mask = mask.contiguous()?.reshape((batch * tokens, count))?;
        let own = AttentionOptions { scale: None, causal: false, key_mask: None };
        let cross = AttentionOptions { key_mask: Some(mask), ..own.clone() };
        let mut hidden = self.input.forward(z)?.broadcast_add(&self.positions)?;
        for block in &self.blocks {
            let parts = shared.broadcast_add(&block.offsets)?;
            let part = |at: usize| Ok::<_, Error>(parts.narrow(1, at * d, d)?.unsqueeze(1)?);
            let modulated = |x: &Tensor, first: usize| {
                let scaled = x.broadcast_mul(&(part(first)? + 1.0)?)?;
                Ok::<_, Error>(scaled.broadcast_add(&part(first + 1)?)?)
            };
            let x = modulated(&block.norm[0].forward(&hidden)?, 0)?;
            let qkv = block.to_qkv.forward(&x)?;
            let mixed = ops::attention_packed(&qkv, heads, heads, &own)?;
            let mixed = block.to_out.forward(&mixed)?;
            hidden = (hidden + mixed.broadcast_mul(&(part(2)? + 1.0)?)?)?;
            let x = block.norm[1].forward(&hidden)?;
            let q = block.to_q.forward(&x)?.reshape((batch * tokens, 1, heads, dim))?;
            let kv = block.to_kv.forward(&words)?;
            let half = |first: usize| {
                let part = kv.narrow(2, first * d, d)?.contiguous()?;
                Ok::<_, Error>(part.reshape((batch * tokens, count, heads, dim))?)
            };
            let mixed = ops::attention(&q, &half(0)?, &half(1)?, &cross)?;
            hidden = (hidden + block.to_out2.forward(&mixed.reshape((batch, tokens, d))?)?)?;
            let x = modulated(&block.norm[2].forward(&hidden)?, 3)?;
            let x = block.up.forward_activation(&x, Some(Activation::GeluTanh))?;
            let x = block.down.forward(&x)?;
            hidden = (hidden + x.broadcast_mul(&(part(5)? + 1.0)?)?)?;
        }
        self.output.forward(&self.norm.forward(&hidden)?)
    }
}

/// Codes `[pictures, tokens, components]` as rows after one of zeros.
fn memory(codes: &Tensor) -> Result<Tensor> {
    let rows = codes.flatten_from(1)?.detach();
    let zero = Tensor::zeros((1, rows.dim(1)?), rows.dtype(), rows.device())?;
    Ok(Tensor::cat(&[&zero, &rows], 0)?)
}

/// Sine and cosine of the time at 32 frequencies, `[batch, 64]`.
fn time_code(times: &[usize]) -> Result<Tensor> {
    let half = TIME / 2;
    let mut values = Vec::with_capacity(times.len() * TIME);
    for &time in times {
        let angle = |at: usize| time as f64 * 10_000f64.powf(-(at as f64) / half as f64);
        values.extend((0..half).map(|at| angle(at).cos() as f32));
        values.extend((0..half).map(|at| angle(at).sin() as f32));
    }
    Ok(Tensor::from_vec(values, (times.len(), TIME), &Device::Cpu)?)
}
