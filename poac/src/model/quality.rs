//! The quality head: LAION's aesthetic MLP in shape, trained on known degradation (§5.3).

use std::collections::BTreeMap;

use candle_core::{D, Tensor};
use common::nn::{Builder, Linear, Parameters};
use common::rng::Seed;
use common::{Result, ops};

use super::scorer::unit;

/// Linear layers without activations between them, on unit-length features, as LAION published
/// them: the activations are commented out there.
#[derive(Debug, Clone)]
pub struct QualityHead {
    layers: Vec<Linear>,
    parameters: Parameters,
}

/// Positions of the linear layers in LAION's `nn.Sequential`.
const PLACES: [usize; 5] = [0, 2, 4, 6, 7];

impl QualityHead {
    /// LAION's widths after `inputs`: 1024, 128, 64, 16, 1.
    pub const LAION: [usize; 5] = [1024, 128, 64, 16, 1];

    /// New weights.
    pub fn new(inputs: usize, widths: [usize; 5], seed: Seed) -> Result<Self> {
        Self::build(inputs, widths, Builder::seeded(seed))
    }

    /// Constants under LAION's names, `layers.{0,2,4,6,7}.{weight,bias}`.
    pub fn frozen(
        inputs: usize,
        widths: [usize; 5],
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        Self::build(inputs, widths, Builder::from_tensors(tensors).frozen())
    }

    fn build(inputs: usize, widths: [usize; 5], mut builder: Builder) -> Result<Self> {
        let mut width = inputs;
        let mut layers = Vec::new();
        for (place, next) in PLACES.into_iter().zip(widths) {
            layers.push(
                builder.within(format!("layers.{place}"), |b| Linear::new(b, width, next, true))?,
            );
            width = next;
        }
        Ok(Self { layers, parameters: builder.finish() })
    }

    /// The trainable tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Scores `[n]` of features `[n, inputs]`, which are scaled to unit length.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        self.raw(&unit(features)?)
    }

    /// Scores `[n]` of features `[n, inputs]` as they are (ImageReward).
    pub fn raw(&self, features: &Tensor) -> Result<Tensor> {
        let mut x = features.clone();
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        Ok(x.squeeze(D::Minus1)?)
    }

    /// Mean squared error against known scores `[n]`.
    pub fn loss(&self, features: &Tensor, scores: &Tensor) -> Result<Tensor> {
        Ok(ops::mean_squared_error(&self.forward(features)?, scores)?)
    }
}
