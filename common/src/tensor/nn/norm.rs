//! Normalisation layers.

use candle_core::Tensor;

use super::{Builder, Init};
use crate::Result;
use crate::ops::{self, Activation};

/// [`ops::layer_norm`] with parameters `weight` (1) and `bias` (0).
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Over a last axis of `width`.
    pub fn new(builder: &mut Builder, width: usize, eps: f64) -> Result<Self> {
        let weight = builder.tensor("weight", width, Init::Constant(1.0))?;
        let bias = builder.tensor("bias", width, Init::Constant(0.0))?;
        Ok(Self { weight, bias, eps })
    }

    /// Same shape out.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(x, &self.weight, Some(&self.bias), self.eps)?)
    }
}

/// [`ops::rms_norm`] with parameter `weight` (1).
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Over a last axis of `width`.
    pub fn new(builder: &mut Builder, width: usize, eps: f64) -> Result<Self> {
        Ok(Self { weight: builder.tensor("weight", width, Init::Constant(1.0))?, eps })
    }

    /// Same shape out.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::rms_norm(x, &self.weight, self.eps)?)
    }
}

/// [`ops::group_norm`] with parameters `weight` (1) and `bias` (0).
#[derive(Debug, Clone)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// `groups` must divide `channels`.
    pub fn new(builder: &mut Builder, groups: usize, channels: usize, eps: f64) -> Result<Self> {
        let weight = builder.tensor("weight", channels, Init::Constant(1.0))?;
        let bias = builder.tensor("bias", channels, Init::Constant(0.0))?;
        Ok(Self { weight, bias, groups, eps })
    }

    /// `[batch, channels, …]`, same shape out; the activation costs no operator of its own.
    pub fn forward(&self, x: &Tensor, activation: Option<Activation>) -> Result<Tensor> {
        Ok(ops::group_norm(x, &self.weight, &self.bias, self.groups, self.eps, activation)?)
    }
}
