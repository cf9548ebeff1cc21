//! The segmentation network: a small U-Net from a picture and a prompt to a mask.

use candle_core::Tensor;
use common::Result;
use common::nn::{Builder, Conv2d, GroupNorm};
use common::ops::{self, Activation};

/// Side of the network's input and output in pixels.
pub const SIDE: usize = 64;
/// Red, green, blue in −1..1; the box prompt (1 inside); the point prompt (a bump around it).
pub const CHANNELS: usize = 5;

/// Channels at 64, 32, 16 and 8 pixels.
const WIDTHS: [usize; 4] = [12, 24, 48, 64];

/// Convolution 3 × 3, group norm, SiLU.
#[derive(Debug, Clone)]
struct Block {
    conv: Conv2d,
    norm: GroupNorm,
}

impl Block {
    fn new(b: &mut Builder, inputs: usize, outputs: usize, stride: usize) -> Result<Self> {
        Ok(Self {
            conv: b.within("conv", |b| Conv2d::new(b, inputs, outputs, 3, stride, 1))?,
            norm: b.within("norm", |b| GroupNorm::new(b, 4, outputs, 1e-5))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x)?, Some(Activation::Silu))
    }
}

/// Three halvings and three doublings with skip connections; about 172,000 parameters.
#[derive(Debug, Clone)]
pub struct Segmenter {
    first: Block,
    down: Vec<[Block; 2]>,
    up: Vec<Block>,
    head: Conv2d,
}

impl Segmenter {
    /// Networks of fixed size.
    ///
    /// # Errors
    /// Those of the builder's tensors.
    pub fn new(b: &mut Builder) -> Result<Self> {
        let first = b.within("first", |b| Block::new(b, CHANNELS, WIDTHS[0], 1))?;
        let (mut down, mut up) = (Vec::new(), Vec::new());
        for (level, pair) in WIDTHS.windows(2).enumerate() {
            let [outer, inner] = [pair[0], pair[1]];
            let halve = b.within(format!("down.{level}.0"), |b| Block::new(b, outer, inner, 2))?;
            let keep = b.within(format!("down.{level}.1"), |b| Block::new(b, inner, inner, 1))?;
            down.push([halve, keep]);
            up.push(b.within(format!("up.{level}"), |b| Block::new(b, inner + outer, outer, 1))?);
        }
        let head = b.within("head", |b| Conv2d::new(b, WIDTHS[0], 1, 1, 1, 0))?;
        Ok(Self { first, down, up, head })
    }

    /// `[batch, 5, 64, 64]` → logits `[batch, 1, 64, 64]`, positive inside the object.
    ///
    /// # Errors
    /// Tensor operations only.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.first.forward(x)?;
        let mut skips = Vec::new();
        for [halve, keep] in &self.down {
            let inner = keep.forward(&halve.forward(&x)?)?;
            skips.push(std::mem::replace(&mut x, inner));
        }
        for (block, skip) in self.up.iter().zip(&skips).rev() {
            let wide = ops::upsample_nearest(&x, 2)?;
            x = block.forward(&Tensor::cat(&[&wide, skip], 1)?)?;
        }
        self.head.forward(&x)
    }
}
