//! Self-attentive sequential recommendation with a full softmax.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::training::{self, HeldOut, NextItems, TrainOptions, TrainingHistory, Window};
use crate::checkpoint::Trained;
use crate::nn::{
    Attention, AttentionInputs, Builder, Embedding, Heads, Init, LayerNorm, Linear, Mlp, Parameters,
};
use crate::ops::{self, Activation};
use crate::rng::{Seed, Stream};
use crate::{Error, Result};

/// | option | default | purpose | range |
/// |---|---|---|---|
/// | `width` | 64 | length of an item vector | a multiple of `heads` |
/// | `layers` | 2 | attention blocks | ≥ 1 |
/// | `heads` | 2 | attention heads | ≥ 1 |
/// | `inner` | 256 | width of the feed-forward layers | ≥ 1 |
/// | `dropout` | 0.5 | of embeddings and of what each block adds | [0, 1) |
/// | `training` | | see [`TrainOptions`] | |
///
/// The sizes are RecBole's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SasrecOptions {
    /// See the table.
    pub width: usize,
    /// See the table.
    pub layers: usize,
    /// See the table.
    pub heads: usize,
    /// See the table.
    pub inner: usize,
    /// See the table.
    pub dropout: f64,
    /// See the table.
    pub training: TrainOptions,
}

impl Default for SasrecOptions {
    fn default() -> Self {
        Self {
            width: 64,
            layers: 2,
            heads: 2,
            inner: 256,
            dropout: 0.5,
            training: TrainOptions::default(),
        }
    }
}

impl SasrecOptions {
    /// Settings for ML-100k, chosen on its validation cases: dropout of 0.1 to 0.5, batches of 8 to
    /// 64, rates of 0.001 to 0.004 with and without a warm-up, up to 32 epochs. Small batches take
    /// most of the way in each epoch, post-norm blocks need the warm-up for the high rate, and a
    /// running mean of the parameters is better than those of any single epoch.
    pub fn movielens() -> Self {
        let training = TrainOptions {
            epochs: 10,
            batch: 16,
            learning_rate: 3e-3,
            warmup: 200,
            average: 0.99,
            ..TrainOptions::default()
        };
        Self { dropout: 0.2, training, ..Self::default() }
    }
}

/// SASRec ([Kang and McAuley 2018](https://arxiv.org/abs/1808.09781)) in the form of RecBole:
/// post-norm blocks with GELU, learned positions, item vectors tied with the output, and
/// cross-entropy over all items instead of one sampled negative, which is what makes it a strong
/// baseline. Every position of a window is a target. No dropout of attention weights.
#[derive(Debug, Clone)]
pub struct Sasrec {
    items: Embedding,
    positions: Tensor,
    norm: LayerNorm,
    blocks: Vec<Block>,
    parameters: Parameters,
    options: SasrecOptions,
    history: TrainingHistory,
}

#[derive(Debug, Clone)]
struct Block {
    attention: Attention,
    attention_norm: LayerNorm,
    mlp: Mlp,
    mlp_norm: LayerNorm,
}

impl Sasrec {
    fn build(mut builder: Builder, items: usize, options: SasrecOptions) -> Result<Self> {
        let SasrecOptions { width, layers, heads, inner, training, .. } = options;
        if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
            return Err(Error::usage(format!(
                "SASRec of width {width} with {heads} heads; the heads must divide the width"
            )));
        }
        if training.max_length == 0 || items == 0 {
            return Err(Error::usage(format!(
                "SASRec over {items} items with max_length {}; both must be positive",
                training.max_length
            )));
        }
        let normal = Init::Normal(0.02);
        let linear = |b: &mut Builder, name: &str, inputs: usize, outputs: usize| {
            let zero = Some(Init::Constant(0.0));
            b.within(name, |b| Linear::with_init(b, inputs, outputs, zero, normal))
        };
        let norm =
            |b: &mut Builder, name: &str| b.within(name, |b| LayerNorm::new(b, width, 1e-12));
        let block = |b: &mut Builder| {
            let qkv = linear(b, "qkv", width, 3 * width)?;
            let sizes = Heads { heads, kv_heads: heads, dim: width / heads };
            let attention = Attention::packed(qkv, linear(b, "output", width, width)?, sizes);
            let up = linear(b, "up", width, inner)?;
            let mlp = Mlp::new(up, linear(b, "down", inner, width)?, Activation::Gelu);
            Ok(Block {
                attention,
                attention_norm: norm(b, "attention_norm")?,
                mlp,
                mlp_norm: norm(b, "mlp_norm")?,
            })
        };
        let b = &mut builder;
        Ok(Self {
            items: b.within("items", |b| Embedding::new(b, items, width, 0.02))?,
            positions: b.tensor("positions", (training.max_length, width), normal)?,
            norm: norm(b, "norm")?,
            blocks: (0..layers).map(|at| b.within(at, block)).collect::<Result<_>>()?,
            parameters: builder.finish(),
            options,
            history: TrainingHistory::default(),
        })
    }

    /// A model over `items` items with random parameters.
    ///
    /// # Errors
    /// Sizes that don't fit.
    pub fn new(items: usize, options: SasrecOptions, seed: Seed) -> Result<Self> {
        Self::build(Builder::seeded(seed), items, options)
    }

    /// A model with saved parameters (see [`Sasrec::parameters`]).
    ///
    /// # Errors
    /// Absent tensors or other shapes.
    pub fn from_tensors(
        items: usize,
        options: SasrecOptions,
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        Self::build(Builder::from_tensors(tensors), items, options)
    }

    /// Trains on `sequences`; with `valid`, stops early and keeps the best epoch.
    ///
    /// # Errors
    /// Item numbers that are not below `items`, no transition at all, sizes that don't fit.
    pub fn fit(
        sequences: &[Vec<u32>],
        items: usize,
        valid: &[HeldOut],
        options: SasrecOptions,
        seed: Seed,
    ) -> Result<Self> {
        let mut model = Self::new(items, options, seed)?;
        model.history = training::train(&model, sequences, valid, seed)?;
        Ok(model)
    }

    /// [`Sasrec::fit`], or what it gave before for the same data, options and seed: papers that ask
    /// for the same baseline train it once.
    ///
    /// # Errors
    /// As [`Sasrec::fit`] and [`Trained::get_or_train`].
    pub fn fit_once(
        kept: &Trained,
        sequences: &[Vec<u32>],
        items: usize,
        valid: &[HeldOut],
        options: SasrecOptions,
        seed: Seed,
    ) -> Result<Self> {
        let training = TrainOptions { threads: 1, ..options.training };
        let alike = SasrecOptions { training, ..options };
        let data = (sequences, items, valid);
        let (tensors, history) = training::once(kept, "sasrec", alike, data, seed, || {
            let model = Self::fit(sequences, items, valid, options, seed)?;
            Ok((model.parameters.tensors(), model.history))
        })?;
        Ok(Self { history, ..Self::from_tensors(items, options, tensors)? })
    }

    /// Mean cross-entropy of windows of at most `max_length` items; with a stream, dropout draws
    /// from it.
    ///
    /// # Errors
    /// Windows that are too long, or with more next items than items.
    pub fn loss(&self, batch: &[Window<'_>], stream: Option<Stream>) -> Result<Tensor> {
        training::loss(self, batch, stream)
    }

    /// One score per item for each history, of which the latest `max_length` items count. Zeros for
    /// an empty history.
    ///
    /// # Errors
    /// Item numbers that the model does not know.
    pub fn scores(&self, histories: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        training::scores(self, histories)
    }

    /// The trained tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Loss and validation of each epoch; empty for a model that was not trained here.
    pub fn history(&self) -> &TrainingHistory {
        &self.history
    }
}

impl NextItems for Sasrec {
    fn hidden(&self, ids: &Tensor, mut stream: Option<Stream>) -> Result<Tensor> {
        let (_, longest) = ids.dims2()?;
        let mut drop = |x: Tensor| match &mut stream {
            Some(stream) => ops::dropout(&x, self.options.dropout, stream),
            None => Ok(x),
        };
        let positions: Vec<u32> = (0..longest as u32).collect();
        let positions = Tensor::from_vec(positions, longest, &Device::Cpu)?;
        let positions = ops::embedding(&self.positions, &positions)?;
        let x = ops::add(&self.items.forward(ids)?, &positions)?;
        let mut hidden = drop(self.norm.forward(&x)?)?;
        for block in &self.blocks {
            let mixed = drop(block.attention.forward(&hidden, AttentionInputs::default())?)?;
            hidden = block.attention_norm.forward(&ops::add(&hidden, &mixed)?)?;
            let mixed = drop(block.mlp.forward(&hidden)?)?;
            hidden = block.mlp_norm.forward(&ops::add(&hidden, &mixed)?)?;
        }
        Ok(hidden)
    }

    fn item_vectors(&self) -> &Tensor {
        self.items.weight()
    }

    fn options(&self) -> &TrainOptions {
        &self.options.training
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}
