//! Recurrent sequential recommendation with a full softmax.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::training::{self, HeldOut, NextItems, TrainOptions, TrainingHistory, Window};
use crate::checkpoint::Trained;
use crate::nn::{Builder, Embedding, Init, Linear, Parameters};
use crate::ops;
use crate::rng::{Seed, Stream};
use crate::{Error, Result};

/// | option | default | purpose | range |
/// |---|---|---|---|
/// | `width` | 64 | length of an item vector | ≥ 1 |
/// | `hidden` | 128 | width of the recurrent layer | ≥ 1 |
/// | `dropout` | 0.3 | of the item vectors | [0, 1) |
/// | `training` | | see [`TrainOptions`] | |
///
/// The sizes are RecBole's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gru4recOptions {
    /// See the table.
    pub width: usize,
    /// See the table.
    pub hidden: usize,
    /// See the table.
    pub dropout: f64,
    /// See the table.
    pub training: TrainOptions,
}

impl Default for Gru4recOptions {
    fn default() -> Self {
        Self { width: 64, hidden: 128, dropout: 0.3, training: TrainOptions::default() }
    }
}

impl Gru4recOptions {
    /// Settings for ML-100k, chosen on its validation cases; see [`super::SasrecOptions::movielens`].
    pub fn movielens() -> Self {
        let training = TrainOptions {
            epochs: 10,
            batch: 16,
            learning_rate: 4e-3,
            warmup: 100,
            average: 0.99,
            ..TrainOptions::default()
        };
        Self { training, ..Self::default() }
    }
}

/// GRU4Rec ([Hidasi et al. 2016](https://arxiv.org/abs/1511.06939)) in the form of RecBole (after
/// [Tan et al. 2016](https://arxiv.org/abs/1606.08117)): one GRU layer, a linear map back to the
/// item vectors, cross-entropy over all items at every position.
#[derive(Debug, Clone)]
pub struct Gru4rec {
    items: Embedding,
    input: Linear,
    recurrent: Linear,
    output: Linear,
    parameters: Parameters,
    options: Gru4recOptions,
    history: TrainingHistory,
}

impl Gru4rec {
    fn build(mut builder: Builder, items: usize, options: Gru4recOptions) -> Result<Self> {
        let Gru4recOptions { width, hidden, training, .. } = options;
        if width == 0 || hidden == 0 || items == 0 || training.max_length == 0 {
            return Err(Error::usage(format!(
                "GRU4Rec over {items} items, width {width}, hidden {hidden}, max_length {}; all \
                 must be positive",
                training.max_length
            )));
        }
        let bound = Init::fan_in(hidden);
        let b = &mut builder;
        let mut linear = |name: &str, inputs: usize, outputs: usize| {
            b.within(name, |b| Linear::with_init(b, inputs, outputs, Some(bound), bound))
        };
        Ok(Self {
            input: linear("input", width, 3 * hidden)?,
            recurrent: linear("recurrent", hidden, 3 * hidden)?,
            output: linear("output", hidden, width)?,
            items: b.within("items", |b| Embedding::new(b, items, width, 0.05))?,
            parameters: builder.finish(),
            options,
            history: TrainingHistory::default(),
        })
    }

    /// A model over `items` items with random parameters.
    ///
    /// # Errors
    /// Sizes that don't fit.
    pub fn new(items: usize, options: Gru4recOptions, seed: Seed) -> Result<Self> {
        Self::build(Builder::seeded(seed), items, options)
    }

    /// A model with saved parameters (see [`Gru4rec::parameters`]).
    ///
    /// # Errors
    /// Absent tensors or other shapes.
    pub fn from_tensors(
        items: usize,
        options: Gru4recOptions,
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
        options: Gru4recOptions,
        seed: Seed,
    ) -> Result<Self> {
        let mut model = Self::new(items, options, seed)?;
        model.history = training::train(&model, sequences, valid, seed)?;
        Ok(model)
    }

    /// [`Gru4rec::fit`], or what it gave before for the same data, options and seed: papers that ask
    /// for the same baseline train it once.
    ///
    /// # Errors
    /// As [`Gru4rec::fit`] and [`Trained::get_or_train`].
    pub fn fit_once(
        kept: &Trained,
        sequences: &[Vec<u32>],
        items: usize,
        valid: &[HeldOut],
        options: Gru4recOptions,
        seed: Seed,
    ) -> Result<Self> {
        let training = TrainOptions { threads: 1, ..options.training };
        let alike = Gru4recOptions { training, ..options };
        let data = (sequences, items, valid);
        let (tensors, history) = training::once(kept, "gru4rec", alike, data, seed, || {
            let model = Self::fit(sequences, items, valid, options, seed)?;
            Ok((model.parameters.tensors(), model.history))
        })?;
        Ok(Self { history, ..Self::from_tensors(items, options, tensors)? })
    }

    /// Mean cross-entropy of windows; with a stream, dropout draws from it.
    ///
    /// # Errors
    /// Ids that the model does not know, more next items than items.
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

impl NextItems for Gru4rec {
    fn hidden(&self, ids: &Tensor, stream: Option<Stream>) -> Result<Tensor> {
        let mut x = self.items.forward(&ids.t()?.contiguous()?)?; // (longest, rows, width)
        if let Some(mut stream) = stream {
            x = ops::dropout(&x, self.options.dropout, &mut stream)?;
        }
        let gates = self.input.forward(&x)?;
        let (weight, bias) = (self.recurrent.weight(), self.recurrent.bias());
        let bias = bias.ok_or_else(|| Error::Bug("the recurrent layer has no bias".into()))?;
        let hidden = ops::gru(&gates, weight, bias)?;
        Ok(self.output.forward(&hidden)?.transpose(0, 1)?.contiguous()?)
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
