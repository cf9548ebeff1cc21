//! Convolution layers and the residual block of diffusion U-Nets.

use candle_core::Tensor;

use super::{Builder, GroupNorm, Init, Linear};
use crate::Result;
use crate::ops::{self, Activation};

/// [`ops::conv2d`] with parameters `weight` `[outputs, inputs, kernel, kernel]` and `bias`,
/// initialised as torch's `nn.Conv2d`: uniform in `±1/√(inputs · kernel²)`.
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    stride: usize,
    padding: usize,
}

impl Conv2d {
    /// A square kernel.
    pub fn new(
        builder: &mut Builder,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
    ) -> Result<Self> {
        let init = Init::fan_in(inputs * kernel * kernel);
        let weight = builder.tensor("weight", (outputs, inputs, kernel, kernel), init)?;
        Ok(Self { weight, bias: builder.tensor("bias", outputs, init)?, stride, padding })
    }

    /// `[batch, inputs, height, width]` → `[batch, outputs, …]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::conv2d(x, &self.weight, Some(&self.bias), self.stride, self.padding)?)
    }
}

/// Residual block with a time embedding, as in
/// [DDPM](https://arxiv.org/abs/2006.11239)'s U-Net:
/// `x + conv2(SiLU(norm2(conv1(SiLU(norm1(x))) + linear(time))))`, 3 × 3 kernels, equal channels.
#[derive(Debug, Clone)]
pub struct ResidualBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    time: Linear,
}

impl ResidualBlock {
    /// `groups` must divide `channels`; the time embedding has `time` values.
    pub fn new(builder: &mut Builder, channels: usize, groups: usize, time: usize) -> Result<Self> {
        let conv = |b: &mut Builder| Conv2d::new(b, channels, channels, 3, 1, 1);
        let norm = |b: &mut Builder| GroupNorm::new(b, groups, channels, 1e-5);
        Ok(Self {
            norm1: builder.within("norm1", norm)?,
            conv1: builder.within("conv1", conv)?,
            norm2: builder.within("norm2", norm)?,
            conv2: builder.within("conv2", conv)?,
            time: builder.within("time", |b| Linear::new(b, time, channels, true))?,
        })
    }

    /// `x` `[batch, channels, height, width]`, `time` `[batch, time]`; same shape out.
    pub fn forward(&self, x: &Tensor, time: &Tensor) -> Result<Tensor> {
        let hidden = self.conv1.forward(&self.norm1.forward(x, Some(Activation::Silu))?)?;
        let hidden = ops::add_per_channel(&hidden, &self.time.forward(time)?)?;
        let hidden = self.norm2.forward(&hidden, Some(Activation::Silu))?;
        Ok(ops::add(x, &self.conv2.forward(&hidden)?)?)
    }
}
