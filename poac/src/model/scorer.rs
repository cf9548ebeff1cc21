//! The dual encoder in CLIP's form: a vision transformer and a text network into one space.

use std::collections::BTreeMap;

use candle_core::{D, Tensor};
use common::nn::{
    Attention, AttentionInputs, Builder, Heads, Init, LayerNorm, Linear, Mlp, Parameters,
};
use common::ops::Activation;
use common::rng::Seed;
use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Pixels of a patch's side.
const PATCH: usize = 4;

/// Sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScorerOptions {
    /// Width of the image tokens.
    pub width: usize,
    /// Blocks of the image encoder.
    pub blocks: usize,
    /// Attention heads; divides the width.
    pub heads: usize,
    /// Values of the common embedding.
    pub embedding: usize,
}

impl Default for ScorerOptions {
    fn default() -> Self {
        Self { width: 64, blocks: 2, heads: 4, embedding: 64 }
    }
}

/// Image and text encoder with a common embedding.
#[derive(Debug, Clone)]
pub struct Scorer {
    patches: Linear,
    positions: Tensor,
    blocks: Vec<(LayerNorm, Attention, LayerNorm, Mlp)>,
    norm: LayerNorm,
    image: Linear,
    text: Mlp,
    scale: Tensor,
    parameters: Parameters,
}

impl Scorer {
    /// New weights for pictures of `size` pixels and `features` text features.
    pub fn new(options: &ScorerOptions, size: usize, features: usize, seed: Seed) -> Result<Self> {
        Self::build(options, size, features, Builder::seeded(seed))
    }

    /// Constants from a file: no gradient is recorded for them, but pictures get theirs.
    pub fn frozen(
        options: &ScorerOptions,
        size: usize,
        features: usize,
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        Self::build(options, size, features, Builder::from_tensors(tensors).frozen())
    }

    fn build(
        options: &ScorerOptions,
        size: usize,
        features: usize,
        mut builder: Builder,
    ) -> Result<Self> {
        let d = options.width;
        if options.heads == 0 || !d.is_multiple_of(options.heads) || !size.is_multiple_of(PATCH) {
            return Err(Error::usage(format!(
                "scorer.heads {} must divide scorer.width {d}, and {PATCH} the picture's {size} \
                 pixels",
                options.heads
            )));
        }
        let b = &mut builder;
        let linear = |b: &mut Builder, name: &str, inputs: usize, outputs: usize| {
            b.within(name, |b| Linear::new(b, inputs, outputs, true))
        };
        let norm = |b: &mut Builder, name: &str| b.within(name, |b| LayerNorm::new(b, d, 1e-5));
        let heads = Heads { heads: options.heads, kv_heads: options.heads, dim: d / options.heads };
        let block = |b: &mut Builder| {
            let qkv = linear(b, "qkv", d, 3 * d)?;
            let attention = Attention::packed(qkv, linear(b, "projection", d, d)?, heads);
            let up = linear(b, "up", d, 4 * d)?;
            let mlp = Mlp::new(up, linear(b, "down", 4 * d, d)?, Activation::GeluTanh);
            Ok((norm(b, "norm1")?, attention, norm(b, "norm2")?, mlp))
        };
        let tokens = (size / PATCH).pow(2);
        let up = linear(b, "text.0", features, 2 * d)?;
        let down = linear(b, "text.1", 2 * d, options.embedding)?;
        let built = Self {
            patches: linear(b, "patches", 3 * PATCH * PATCH, d)?,
            positions: b.tensor("positions", (tokens, d), Init::Normal(0.1))?,
            blocks: (0..options.blocks)
                .map(|at| b.within(format!("blocks.{at}"), block))
                .collect::<Result<_>>()?,
            norm: norm(b, "norm")?,
            image: linear(b, "image", d, options.embedding)?,
            text: Mlp::new(up, down, Activation::GeluTanh),
            scale: b.tensor("logit_scale", 1, Init::Constant(10f64.ln()))?,
            parameters: Parameters::default(),
        };
        Ok(Self { parameters: builder.finish(), ..built })
    }

    /// The trainable tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Unit embeddings `[n, embedding]` of pictures `[n, 3, size, size]` in -1..1.
    pub fn embed_images(&self, pictures: &Tensor) -> Result<Tensor> {
        unit(&self.image.forward(&self.image_features(pictures)?)?)
    }

    /// Features of pictures before the common space, `[n, width]`.
    pub fn image_features(&self, pictures: &Tensor) -> Result<Tensor> {
        let (n, channels, size, _) = pictures.dims4()?;
        let side = size / PATCH;
        let split = pictures.reshape(&[n, channels, side, PATCH, side, PATCH][..])?;
        let tokens = split.permute(vec![0, 2, 4, 1, 3, 5])?.contiguous()?;
        let tokens = tokens.reshape((n, side * side, channels * PATCH * PATCH))?;
        let mut hidden = self.patches.forward(&tokens)?.broadcast_add(&self.positions)?;
        for (norm1, attention, norm2, mlp) in &self.blocks {
            let inputs = AttentionInputs { bidirectional: true, ..AttentionInputs::default() };
            hidden = (&hidden + attention.forward(&norm1.forward(&hidden)?, inputs)?)?;
            hidden = (&hidden + mlp.forward(&norm2.forward(&hidden)?)?)?;
        }
        Ok(self.norm.forward(&hidden)?.mean(1)?)
    }

    /// Unit embeddings `[n, embedding]` of mean word features `[n, features]`.
    pub fn embed_texts(&self, features: &Tensor) -> Result<Tensor> {
        unit(&self.text.forward(features)?)
    }

    /// Multi-positive InfoNCE: `positives` `[n, n]` says which texts (columns) fit which pictures
    /// (rows); targets are spread evenly over them in both directions.
    pub fn loss(&self, images: &Tensor, texts: &Tensor, positives: &Tensor) -> Result<Tensor> {
        let logits = images.matmul(&texts.t()?)?.broadcast_mul(&self.scale.exp()?)?;
        let one_way = |logits: &Tensor, positives: &Tensor| {
            let share = positives.broadcast_div(&positives.sum_keepdim(1)?)?;
            let most = logits.max_keepdim(1)?.detach();
            let shifted = logits.broadcast_sub(&most)?;
            let log_sum = shifted.exp()?.sum_keepdim(1)?.log()?;
            let log_probs = shifted.broadcast_sub(&log_sum)?;
            let total = (log_probs * share)?.sum_all()?;
            Ok::<_, Error>((total.neg()? / logits.dim(0)? as f64)?)
        };
        let columns = one_way(&logits.t()?.contiguous()?, &positives.t()?.contiguous()?)?;
        Ok(((one_way(&logits, positives)? + columns)? * 0.5)?)
    }
}

/// Rows divided by their length.
pub fn unit(x: &Tensor) -> Result<Tensor> {
    let length = (x.sqr()?.sum_keepdim(D::Minus1)? + 1e-8)?.sqrt()?;
    Ok(x.broadcast_div(&length)?)
}
