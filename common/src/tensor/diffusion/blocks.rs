//! The parts that the U-Net and the autoencoder are made of, under diffusers' names.

use candle_core::Tensor;

use crate::nn::{Builder, Conv2d, GroupNorm, LayerNorm, Linear};
use crate::ops::{self, Activation, AttentionOptions};
use crate::{Error, Result};

/// Residual block: `shortcut(x) + conv2(SiLU(norm2(conv1(SiLU(norm1(x))) + time_emb_proj(time))))`.
#[derive(Debug, Clone)]
pub(super) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl Resnet {
    /// `time` is the width of the time embedding, if there is one.
    pub(super) fn new(
        b: &mut Builder,
        inputs: usize,
        outputs: usize,
        groups: usize,
        eps: f64,
        time: Option<usize>,
    ) -> Result<Self> {
        if !inputs.is_multiple_of(groups) {
            return Err(Error::Bug(format!("{groups} groups of {inputs} channels")));
        }
        let conv = |b: &mut Builder, name: &str, inputs: usize, kernel: usize| {
            b.within(name, |b| Conv2d::new(b, inputs, outputs, kernel, 1, kernel / 2))
        };
        Ok(Self {
            norm1: b.within("norm1", |b| GroupNorm::new(b, groups, inputs, eps))?,
            conv1: conv(b, "conv1", inputs, 3)?,
            time: time
                .map(|time| b.within("time_emb_proj", |b| Linear::new(b, time, outputs, true)))
                .transpose()?,
            norm2: b.within("norm2", |b| GroupNorm::new(b, groups, outputs, eps))?,
            conv2: conv(b, "conv2", outputs, 3)?,
            shortcut: match inputs == outputs {
                true => None,
                false => Some(conv(b, "conv_shortcut", inputs, 1)?),
            },
        })
    }

    /// `[batch, inputs, h, w]` → `[batch, outputs, h, w]`; `time` `[batch, time]` after its SiLU.
    pub(super) fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let mut hidden = self.conv1.forward(&self.norm1.forward(x, Some(Activation::Silu))?)?;
        if let (Some(layer), Some(time)) = (&self.time, time) {
            hidden = ops::add_per_channel(&hidden, &layer.forward(time)?)?;
        }
        let hidden = self.norm2.forward(&hidden, Some(Activation::Silu))?;
        let hidden = self.conv2.forward(&hidden)?;
        Ok(match &self.shortcut {
            Some(shortcut) => ops::add(&shortcut.forward(x)?, &hidden)?,
            None => ops::add(x, &hidden)?,
        })
    }
}

/// Multi-head attention: `to_q`, `to_k`, `to_v`, `to_out.0`.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: usize,
}

impl Attention {
    /// Queries of `width`, keys and values of `context`; `bias` on the three projections.
    pub(super) fn new(
        b: &mut Builder,
        width: usize,
        context: usize,
        heads: usize,
        bias: bool,
    ) -> Result<Self> {
        let linear = |b: &mut Builder, name: &str, inputs: usize, bias: bool| {
            b.within(name, |b| Linear::new(b, inputs, width, bias))
        };
        Ok(Self {
            q: linear(b, "to_q", width, bias)?,
            k: linear(b, "to_k", context, bias)?,
            v: linear(b, "to_v", context, bias)?,
            out: linear(b, "to_out.0", width, true)?,
            heads,
        })
    }

    /// `x` `[batch, queries, width]` attends to `context` `[batch, keys, context]`.
    pub(super) fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let (batch, queries, width) = x.dims3()?;
        let keys = context.dim(1)?;
        let split = |x: Tensor, positions: usize| {
            x.reshape((batch, positions, self.heads, width / self.heads))
        };
        let q = split(self.q.forward(x)?, queries)?;
        let k = split(self.k.forward(context)?, keys)?;
        let v = split(self.v.forward(context)?, keys)?;
        let mixed = ops::attention(&q, &k, &v, &AttentionOptions::default())?;
        self.out.forward(&mixed.reshape((batch, queries, width))?)
    }

    fn linears_mut<'a>(&'a mut self, name: &str, all: &mut Vec<(String, &'a mut Linear)>) {
        let Self { q, k, v, out, .. } = self;
        for (part, linear) in [("to_q", q), ("to_k", k), ("to_v", v), ("to_out.0", out)] {
            all.push((format!("{name}.{part}"), linear));
        }
    }
}

/// One block of a [`Transformer`]: attention to itself, to the text, and a GEGLU layer.
#[derive(Debug, Clone)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    up: Linear,
    down: Linear,
}

impl TransformerBlock {
    fn new(b: &mut Builder, width: usize, context: usize, heads: usize) -> Result<Self> {
        let norm = |b: &mut Builder, name: &str| b.within(name, |b| LayerNorm::new(b, width, 1e-5));
        Ok(Self {
            norm1: norm(b, "norm1")?,
            attn1: b.within("attn1", |b| Attention::new(b, width, width, heads, false))?,
            norm2: norm(b, "norm2")?,
            attn2: b.within("attn2", |b| Attention::new(b, width, context, heads, false))?,
            norm3: norm(b, "norm3")?,
            up: b.within("ff.net.0.proj", |b| Linear::new(b, width, 8 * width, true))?,
            down: b.within("ff.net.2", |b| Linear::new(b, 4 * width, width, true))?,
        })
    }

    fn forward(&self, x: &Tensor, text: &Tensor) -> Result<Tensor> {
        let inner = self.norm1.forward(x)?;
        let x = ops::add(x, &self.attn1.forward(&inner, &inner)?)?;
        let x = ops::add(&x, &self.attn2.forward(&self.norm2.forward(&x)?, text)?)?;
        let inner = ops::geglu(&self.up.forward(&self.norm3.forward(&x)?)?)?;
        Ok(ops::add(&x, &self.down.forward(&inner)?)?)
    }
}

/// The 1 × 1 projections around a transformer.
#[derive(Debug, Clone)]
enum Projection {
    Conv(Conv2d),
    Linear(Linear),
}

impl Projection {
    fn new(b: &mut Builder, width: usize, linear: bool) -> Result<Self> {
        Ok(match linear {
            true => Self::Linear(Linear::new(b, width, width, true)?),
            false => Self::Conv(Conv2d::new(b, width, width, 1, 1, 0)?),
        })
    }
}

/// `Transformer2DModel`: pixels as tokens that attend to each other and to the text.
#[derive(Debug, Clone)]
pub(super) struct Transformer {
    norm: GroupNorm,
    input: Projection,
    blocks: Vec<TransformerBlock>,
    output: Projection,
}

/// Sizes of a [`Transformer`].
#[derive(Debug, Clone, Copy)]
pub(super) struct TransformerSizes {
    pub(super) channels: usize,
    pub(super) context: usize,
    pub(super) heads: usize,
    pub(super) layers: usize,
    pub(super) groups: usize,
    pub(super) linear: bool,
}

impl Transformer {
    pub(super) fn new(b: &mut Builder, sizes: TransformerSizes) -> Result<Self> {
        let TransformerSizes { channels, context, heads, layers, groups, linear } = sizes;
        let block = |b: &mut Builder, at: usize| {
            b.within(format!("transformer_blocks.{at}"), |b| {
                TransformerBlock::new(b, channels, context, heads)
            })
        };
        Ok(Self {
            norm: b.within("norm", |b| GroupNorm::new(b, groups, channels, 1e-6))?,
            input: b.within("proj_in", |b| Projection::new(b, channels, linear))?,
            blocks: (0..layers).map(|at| block(b, at)).collect::<Result<_>>()?,
            output: b.within("proj_out", |b| Projection::new(b, channels, linear))?,
        })
    }

    /// `[batch, channels, h, w]` and text `[batch, words, context]`; same shape as the first out.
    pub(super) fn forward(&self, x: &Tensor, text: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let normed = self.norm.forward(x, None)?;
        let mut tokens = match &self.input {
            Projection::Conv(conv) => to_tokens(&conv.forward(&normed)?)?,
            Projection::Linear(linear) => linear.forward(&to_tokens(&normed)?)?,
        };
        for block in &self.blocks {
            tokens = block.forward(&tokens, text)?;
        }
        let out = match &self.output {
            Projection::Conv(conv) => conv.forward(&to_pixels(&tokens, height, width)?)?,
            Projection::Linear(linear) => to_pixels(&linear.forward(&tokens)?, height, width)?,
        };
        Ok(ops::add(x, &out)?)
    }

    pub(super) fn linears_mut<'a>(
        &'a mut self,
        name: &str,
        all: &mut Vec<(String, &'a mut Linear)>,
    ) {
        if let Projection::Linear(linear) = &mut self.input {
            all.push((format!("{name}.proj_in"), linear));
        }
        for (at, block) in self.blocks.iter_mut().enumerate() {
            let name = format!("{name}.transformer_blocks.{at}");
            block.attn1.linears_mut(&format!("{name}.attn1"), all);
            block.attn2.linears_mut(&format!("{name}.attn2"), all);
            all.push((format!("{name}.ff.net.0.proj"), &mut block.up));
            all.push((format!("{name}.ff.net.2"), &mut block.down));
        }
        if let Projection::Linear(linear) = &mut self.output {
            all.push((format!("{name}.proj_out"), linear));
        }
    }
}

/// `[batch, channels, h, w]` → `[batch, h · w, channels]`.
pub(super) fn to_tokens(x: &Tensor) -> Result<Tensor> {
    Ok(x.flatten_from(2)?.transpose(1, 2)?.contiguous()?)
}

/// `[batch, h · w, channels]` → `[batch, channels, h, w]`.
pub(super) fn to_pixels(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, _, channels) = x.dims3()?;
    Ok(x.transpose(1, 2)?.contiguous()?.reshape((batch, channels, height, width))?)
}

/// Twice the sides by repetition, then a 3 × 3 convolution.
#[derive(Debug, Clone)]
pub(super) struct Upsample(Conv2d);

impl Upsample {
    pub(super) fn new(b: &mut Builder, channels: usize) -> Result<Self> {
        Ok(Self(b.within("upsamplers.0.conv", |b| Conv2d::new(b, channels, channels, 3, 1, 1))?))
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(&ops::upsample_nearest(x, 2)?)
    }
}
