//! `UNet2DConditionModel`: ε_θ(z_t, t, τ(y)) of Stable Diffusion 1.x, 2.x and XL.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::blocks::{Resnet, Transformer, TransformerSizes, Upsample};
use super::config::{Level, UnetConfig};
use crate::nn::{Builder, Conv2d, GroupNorm, Linear, LoraOptions, Parameters};
use crate::ops::Activation;
use crate::rng::Seed;
use crate::{Error, Result};

/// What SDXL adds to the time embedding.
#[derive(Debug, Clone)]
pub struct AddedCondition {
    /// Pooled text of the second encoder, `[batch, projection]`.
    pub text_embeds: Tensor,
    /// Original size, crop and target size in pixels, `[batch, 6]`.
    pub time_ids: Tensor,
}

/// Two linear layers with SiLU between.
#[derive(Debug, Clone)]
struct TimeEmbedding([Linear; 2]);

impl TimeEmbedding {
    fn new(b: &mut Builder, inputs: usize, outputs: usize) -> Result<Self> {
        let first = b.within("linear_1", |b| Linear::new(b, inputs, outputs, true))?;
        Ok(Self([first, b.within("linear_2", |b| Linear::new(b, outputs, outputs, true))?]))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0[1].forward(&self.0[0].forward_activation(x, Some(Activation::Silu))?)
    }
}

/// Residual blocks, each with a transformer or none, and a change of size at the end.
#[derive(Debug, Clone)]
struct Stage<Resize> {
    layers: Vec<(Resnet, Option<Transformer>)>,
    resize: Option<Resize>,
}

impl<Resize> Stage<Resize> {
    fn linears_mut<'a>(&'a mut self, name: &str, all: &mut Vec<(String, &'a mut Linear)>) {
        for (at, (_, transformer)) in self.layers.iter_mut().enumerate() {
            if let Some(transformer) = transformer {
                transformer.linears_mut(&format!("{name}.attentions.{at}"), all);
            }
        }
    }
}

/// The denoiser. Every weight has a gradient; each sample of a batch has its own time.
#[derive(Debug, Clone)]
pub struct Unet {
    config: UnetConfig,
    conv_in: Conv2d,
    time: TimeEmbedding,
    added: Option<TimeEmbedding>,
    down: Vec<Stage<Conv2d>>,
    middle: (Resnet, Transformer, Resnet),
    up: Vec<Stage<Upsample>>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    parameters: Parameters,
}

impl Unet {
    /// New weights.
    ///
    /// # Errors
    /// [`Error::Asset`] on sizes that do not fit together.
    pub fn new(config: &UnetConfig, seed: Seed) -> Result<Self> {
        Self::build(config, Builder::seeded(seed))
    }

    /// Weights of a file, trainable.
    ///
    /// # Errors
    /// [`Error::Asset`] with the tensor that is absent or has another shape.
    pub fn from_tensors(config: &UnetConfig, tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        Self::build(config, Builder::from_tensors(tensors))
    }

    /// Weights from `builder`; [`Builder::frozen`] makes them constants, which is what adapters
    /// ([`Unet::attach_lora`]) and inference want.
    ///
    /// # Errors
    /// As [`Unet::from_tensors`].
    pub fn build(config: &UnetConfig, mut builder: Builder) -> Result<Self> {
        let levels = config.levels()?;
        let b = &mut builder;
        let (groups, eps) = (config.norm_num_groups, config.norm_eps);
        let first = levels[0].channels;
        let last = levels[levels.len() - 1];
        let embedding = 4 * first;
        let resnet = |b: &mut Builder, name: String, inputs: usize, outputs: usize| {
            b.within(name, |b| Resnet::new(b, inputs, outputs, groups, eps, Some(embedding)))
        };
        let transformer = |b: &mut Builder, name: String, level: &Level| {
            let sizes = TransformerSizes {
                channels: level.channels,
                context: config.cross_attention_dim,
                heads: level.heads,
                layers: level.transformer_layers,
                groups,
                linear: config.use_linear_projection,
            };
            b.within(name, |b| Transformer::new(b, sizes))
        };
        let layer = |b: &mut Builder, at: usize, inputs: usize, level: &Level, way: usize| {
            let resnet = resnet(b, format!("resnets.{at}"), inputs, level.channels)?;
            let name = format!("attentions.{at}");
            let cross = level.cross[way];
            let transformer = cross.then(|| transformer(b, name, level)).transpose()?;
            Ok::<_, Error>((resnet, transformer))
        };
        let conv_in =
            b.within("conv_in", |b| Conv2d::new(b, config.in_channels, first, 3, 1, 1))?;
        let time = b.within("time_embedding", |b| TimeEmbedding::new(b, first, embedding))?;
        let added = config
            .text_time()
            .map(|(_, inputs)| {
                b.within("add_embedding", |b| TimeEmbedding::new(b, inputs, embedding))
            })
            .transpose()?;
        // channels of what the way up gets from the way down
        let mut skips = vec![first];
        let mut channels = first;
        let mut down = Vec::new();
        for (at, level) in levels.iter().enumerate() {
            let stage = b.within(format!("down_blocks.{at}"), |b| {
                let mut layers = Vec::new();
                for which in 0..config.layers_per_block {
                    layers.push(layer(b, which, channels, level, 0)?);
                    channels = level.channels;
                    skips.push(channels);
                }
                let smaller = at + 1 < levels.len();
                let resize = smaller.then(|| {
                    skips.push(channels);
                    b.within("downsamplers.0.conv", |b| Conv2d::new(b, channels, channels, 3, 2, 1))
                });
                Ok(Stage { layers, resize: resize.transpose()? })
            })?;
            down.push(stage);
        }
        let middle = b.within("mid_block", |b| {
            let first = resnet(b, "resnets.0".into(), channels, channels)?;
            let attention = transformer(b, "attentions.0".into(), &last)?;
            Ok((first, attention, resnet(b, "resnets.1".into(), channels, channels)?))
        })?;
        let mut up = Vec::new();
        for (at, level) in levels.iter().rev().enumerate() {
            let stage = b.within(format!("up_blocks.{at}"), |b| {
                let mut layers = Vec::new();
                for which in 0..=config.layers_per_block {
                    let skip = skips.pop().unwrap_or(0);
                    layers.push(layer(b, which, channels + skip, level, 1)?);
                    channels = level.channels;
                }
                let larger = at + 1 < levels.len();
                let resize = larger.then(|| Upsample::new(b, channels)).transpose()?;
                Ok(Stage { layers, resize })
            })?;
            up.push(stage);
        }
        let norm_out = b.within("conv_norm_out", |b| GroupNorm::new(b, groups, first, eps))?;
        let conv_out =
            b.within("conv_out", |b| Conv2d::new(b, first, config.out_channels, 3, 1, 1))?;
        let (config, parameters) = (config.clone(), builder.finish());
        Ok(Self { config, conv_in, time, added, down, middle, up, norm_out, conv_out, parameters })
    }

    /// Sizes.
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// The trainable tensors without adapters, under diffusers' names.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// `sample` `[batch, in_channels, h, w]` at one time a sample, text `[batch, words, width]` →
    /// `[batch, out_channels, h, w]`. `added` is what SDXL wants beside the text.
    ///
    /// # Errors
    /// [`Error::Usage`] on shapes that do not fit.
    pub fn forward(
        &self,
        sample: &Tensor,
        times: &[f64],
        text: &Tensor,
        added: Option<&AddedCondition>,
    ) -> Result<Tensor> {
        let (batch, channels, height, width) = sample.dims4()?;
        let (text_batch, _, text_width) = text.dims3()?;
        let factor = 1 << (self.down.len() - 1);
        if channels != self.config.in_channels
            || times.len() != batch
            || text_batch != batch
            || text_width != self.config.cross_attention_dim
            || !height.is_multiple_of(factor)
            || !width.is_multiple_of(factor)
        {
            return Err(Error::usage(format!(
                "U-Net: latent {:?}, {} times and text {:?}; expected {} channels, sides divisible \
                 by {factor}, a time a sample and text of width {}",
                sample.dims(),
                times.len(),
                text.dims(),
                self.config.in_channels,
                self.config.cross_attention_dim
            )));
        }
        let time = Activation::Silu.apply(&self.time_embedding(times, added)?)?;
        let time = Some(&time);
        let mut x = self.conv_in.forward(sample)?;
        let mut skips = vec![x.clone()];
        for stage in &self.down {
            for (resnet, transformer) in &stage.layers {
                x = resnet.forward(&x, time)?;
                if let Some(transformer) = transformer {
                    x = transformer.forward(&x, text)?;
                }
                skips.push(x.clone());
            }
            if let Some(conv) = &stage.resize {
                x = conv.forward(&x)?;
                skips.push(x.clone());
            }
        }
        let (first, attention, second) = &self.middle;
        x = second.forward(&attention.forward(&first.forward(&x, time)?, text)?, time)?;
        for stage in &self.up {
            for (resnet, transformer) in &stage.layers {
                let skip = skips.pop().ok_or_else(|| Error::Bug("no skip is left".into()))?;
                x = resnet.forward(&Tensor::cat(&[&x, &skip], 1)?, time)?;
                if let Some(transformer) = transformer {
                    x = transformer.forward(&x, text)?;
                }
            }
            if let Some(upsample) = &stage.resize {
                x = upsample.forward(&x)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward(&x, Some(Activation::Silu))?)
    }

    fn time_embedding(&self, times: &[f64], added: Option<&AddedCondition>) -> Result<Tensor> {
        let first = self.config.block_out_channels[0];
        let embedding = self.time.forward(&self.code(times, first)?)?;
        match (&self.added, self.config.text_time(), added) {
            (None, _, None) => Ok(embedding),
            (Some(layer), Some((dim, inputs)), Some(added)) => {
                let batch = times.len();
                let ids: Vec<f64> = added
                    .time_ids
                    .flatten_all()?
                    .to_vec1::<f32>()?
                    .into_iter()
                    .map(f64::from)
                    .collect();
                let codes = self.code(&ids, dim)?.reshape((batch, ids.len() / batch * dim))?;
                let joined = Tensor::cat(&[&added.text_embeds, &codes], 1)?;
                if joined.dim(1)? != inputs {
                    return Err(Error::usage(format!(
                        "U-Net: pooled text {:?} and sizes {:?} make {} values, expected {inputs}",
                        added.text_embeds.dims(),
                        added.time_ids.dims(),
                        joined.dim(1)?
                    )));
                }
                Ok((embedding + layer.forward(&joined)?)?)
            }
            (Some(_), ..) => Err(Error::usage(
                "U-Net: this model (SDXL) needs pooled text and picture sizes beside the text",
            )),
            (None, ..) => Err(Error::usage("U-Net: this model takes no pooled text")),
        }
    }

    /// Cosines and sines of numbers at `dim / 2` frequencies, `[numbers, dim]`.
    fn code(&self, numbers: &[f64], dim: usize) -> Result<Tensor> {
        let half = dim / 2;
        let slope = -(10_000f64.ln()) / (half as f64 - self.config.freq_shift);
        let mut values = Vec::with_capacity(numbers.len() * dim);
        for &number in numbers {
            let angles = (0..half).map(|at| number * (slope * at as f64).exp());
            let (sines, cosines): (Vec<f32>, Vec<f32>) =
                angles.map(|angle| (angle.sin() as f32, angle.cos() as f32)).unzip();
            let [before, after] =
                if self.config.flip_sin_to_cos { [cosines, sines] } else { [sines, cosines] };
            values.extend(before);
            values.extend(after);
            values.resize(values.len() + dim % 2, 0.0);
        }
        Ok(Tensor::from_vec(values, (numbers.len(), dim), &Device::Cpu)?)
    }

    /// Puts adapters drawn from `seed` on the layers whose name ends with a target; `to_q`, `to_k`,
    /// `to_v` and `to_out.0` are the usual ones. Returns their parameters under peft's names
    /// (`<layer>.lora_A.weight`). The model's function stays the same until they train. Build the
    /// model frozen, otherwise its other weights still ask for gradients.
    ///
    /// # Errors
    /// [`Error::Usage`] when no layer is called so.
    pub fn attach_lora(&mut self, options: &LoraOptions, seed: Seed) -> Result<Parameters> {
        self.attach(options, Builder::seeded(seed))
    }

    /// Like [`Unet::attach_lora`] with the adapters of a file; the prefixes of peft
    /// (`base_model.model.`) and diffusers (`unet.`) may stand before the names.
    ///
    /// # Errors
    /// [`Error::Asset`] on an absent adapter or another shape.
    pub fn load_lora(
        &mut self,
        options: &LoraOptions,
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<Parameters> {
        let plain = |name: String| {
            let prefixes = ["base_model.model.", "unet."];
            let short = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
            short.map(str::to_owned).unwrap_or(name)
        };
        let tensors = tensors.into_iter().map(|(name, tensor)| (plain(name), tensor)).collect();
        self.attach(options, Builder::from_tensors(tensors))
    }

    fn attach(&mut self, options: &LoraOptions, mut builder: Builder) -> Result<Parameters> {
        let targeted = |name: &str| {
            options.targets.iter().any(|target| {
                name.strip_suffix(target.as_str()).is_some_and(|rest| rest.ends_with('.'))
            })
        };
        let mut count = 0;
        for (name, linear) in self.linears_mut() {
            if targeted(&name) {
                builder.within(name, |b| linear.attach_lora(b, options.rank, options.alpha))?;
                count += 1;
            }
        }
        if count == 0 {
            let targets = options.targets.join(", ");
            return Err(Error::usage(format!("no layer of the U-Net is called {targets}")));
        }
        Ok(builder.finish())
    }

    /// The linear layers of all transformers by name.
    fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let mut all = Vec::new();
        for (at, stage) in self.down.iter_mut().enumerate() {
            stage.linears_mut(&format!("down_blocks.{at}"), &mut all);
        }
        self.middle.1.linears_mut("mid_block.attentions.0", &mut all);
        for (at, stage) in self.up.iter_mut().enumerate() {
            stage.linears_mut(&format!("up_blocks.{at}"), &mut all);
        }
        all
    }
}
