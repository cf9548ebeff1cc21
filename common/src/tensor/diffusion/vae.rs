//! `AutoencoderKL`: pictures to latents and back.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::blocks::{Attention, Resnet, Upsample, to_pixels, to_tokens};
use super::config::VaeConfig;
use crate::nn::{Builder, Conv2d, GroupNorm, Parameters};
use crate::ops::Activation;
use crate::rng::{Seed, Stream};
use crate::{Error, Result};

const EPS: f64 = 1e-6;

/// What the encoder says of a picture: a normal distribution a latent cell.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// `[batch, latent_channels, h, w]`
    pub mean: Tensor,
    /// Logarithm of the variance, cut to -30..20; same shape.
    pub log_variance: Tensor,
}

impl Posterior {
    /// `mean + noise · sd`; `noise` has the mean's shape.
    ///
    /// # Errors
    /// Those of tensors that do not fit.
    pub fn sample_with(&self, noise: &Tensor) -> Result<Tensor> {
        let sd = (&self.log_variance * 0.5)?.exp()?;
        Ok((&self.mean + (sd * noise)?)?)
    }

    /// [`Posterior::sample_with`] of noise from `stream`.
    ///
    /// # Errors
    /// None but bugs.
    pub fn sample(&self, stream: &mut Stream) -> Result<Tensor> {
        self.sample_with(&stream.normal_tensor(self.mean.shape().clone(), 1.0)?)
    }
}

/// Two residual blocks around an attention of one head.
#[derive(Debug, Clone)]
struct Middle {
    resnets: [Resnet; 2],
    norm: GroupNorm,
    attention: Attention,
}

impl Middle {
    fn new(b: &mut Builder, channels: usize, groups: usize) -> Result<Self> {
        let resnet = |b: &mut Builder, name: &str| {
            b.within(name, |b| Resnet::new(b, channels, channels, groups, EPS, None))
        };
        b.within("mid_block", |b| {
            let (norm, attention) = b.within("attentions.0", |b| {
                let norm = b.within("group_norm", |b| GroupNorm::new(b, groups, channels, EPS))?;
                Ok((norm, Attention::new(b, channels, channels, 1, true)?))
            })?;
            let resnets = [resnet(b, "resnets.0")?, resnet(b, "resnets.1")?];
            Ok(Self { resnets, norm, attention })
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.resnets[0].forward(x, None)?;
        let (_, _, height, width) = x.dims4()?;
        let tokens = to_tokens(&self.norm.forward(&x, None)?)?;
        let mixed = self.attention.forward(&tokens, &tokens)?;
        self.resnets[1].forward(&(x + to_pixels(&mixed, height, width)?)?, None)
    }
}

#[derive(Debug, Clone)]
struct Encoder {
    conv_in: Conv2d,
    stages: Vec<(Vec<Resnet>, Option<Conv2d>)>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    quant: Option<Conv2d>,
}

#[derive(Debug, Clone)]
struct Decoder {
    post_quant: Option<Conv2d>,
    conv_in: Conv2d,
    middle: Middle,
    stages: Vec<(Vec<Resnet>, Option<Upsample>)>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// The autoencoder. Neither direction applies the scaling factor γ of the configuration.
#[derive(Debug, Clone)]
pub struct Vae {
    config: VaeConfig,
    encoder: Encoder,
    decoder: Decoder,
    parameters: Parameters,
}

fn conv(
    b: &mut Builder,
    name: &str,
    inputs: usize,
    outputs: usize,
    kernel: usize,
) -> Result<Conv2d> {
    b.within(name, |b| Conv2d::new(b, inputs, outputs, kernel, 1, kernel / 2))
}

impl Encoder {
    fn new(b: &mut Builder, config: &VaeConfig) -> Result<Self> {
        let (groups, levels) = (config.norm_num_groups, &config.block_out_channels);
        let last = levels[levels.len() - 1];
        let moments = 2 * config.latent_channels;
        let mut channels = levels[0];
        let quant = match config.use_quant_conv {
            true => Some(conv(b, "quant_conv", moments, moments, 1)?),
            false => None,
        };
        b.within("encoder", |b| {
            let conv_in = conv(b, "conv_in", config.in_channels, channels, 3)?;
            let mut stages = Vec::new();
            for (at, &wide) in levels.iter().enumerate() {
                stages.push(b.within(format!("down_blocks.{at}"), |b| {
                    let mut resnets = Vec::new();
                    for which in 0..config.layers_per_block {
                        let name = format!("resnets.{which}");
                        let inputs = std::mem::replace(&mut channels, wide);
                        resnets.push(
                            b.within(name, |b| Resnet::new(b, inputs, wide, groups, EPS, None))?,
                        );
                    }
                    let smaller = at + 1 < levels.len();
                    let down = smaller.then(|| {
                        b.within("downsamplers.0.conv", |b| Conv2d::new(b, wide, wide, 3, 2, 0))
                    });
                    Ok((resnets, down.transpose()?))
                })?);
            }
            let middle = Middle::new(b, last, groups)?;
            let norm_out = b.within("conv_norm_out", |b| GroupNorm::new(b, groups, last, EPS))?;
            let conv_out = conv(b, "conv_out", last, moments, 3)?;
            Ok(Self { conv_in, stages, middle, norm_out, conv_out, quant })
        })
    }

    fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(pictures)?;
        for (resnets, down) in &self.stages {
            for resnet in resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(down) = down {
                // diffusers pads at the right and bottom only
                let padded = x.pad_with_zeros(3, 0, 1)?.pad_with_zeros(2, 0, 1)?;
                x = down.forward(&padded)?;
            }
        }
        x = self.norm_out.forward(&self.middle.forward(&x)?, Some(Activation::Silu))?;
        x = self.conv_out.forward(&x)?;
        self.quant.as_ref().map_or(Ok(x.clone()), |quant| quant.forward(&x))
    }
}

impl Decoder {
    fn new(b: &mut Builder, config: &VaeConfig) -> Result<Self> {
        let (groups, levels) = (config.norm_num_groups, &config.block_out_channels);
        let latent = config.latent_channels;
        let mut channels = levels[levels.len() - 1];
        let post_quant = match config.use_post_quant_conv {
            true => Some(conv(b, "post_quant_conv", latent, latent, 1)?),
            false => None,
        };
        b.within("decoder", |b| {
            let conv_in = conv(b, "conv_in", latent, channels, 3)?;
            let middle = Middle::new(b, channels, groups)?;
            let mut stages = Vec::new();
            for (at, &wide) in levels.iter().rev().enumerate() {
                stages.push(b.within(format!("up_blocks.{at}"), |b| {
                    let mut resnets = Vec::new();
                    for which in 0..=config.layers_per_block {
                        let name = format!("resnets.{which}");
                        let inputs = std::mem::replace(&mut channels, wide);
                        resnets.push(
                            b.within(name, |b| Resnet::new(b, inputs, wide, groups, EPS, None))?,
                        );
                    }
                    let larger = at + 1 < levels.len();
                    Ok((resnets, larger.then(|| Upsample::new(b, wide)).transpose()?))
                })?);
            }
            let norm_out =
                b.within("conv_norm_out", |b| GroupNorm::new(b, groups, channels, EPS))?;
            let conv_out = conv(b, "conv_out", channels, config.out_channels, 3)?;
            Ok(Self { post_quant, conv_in, middle, stages, norm_out, conv_out })
        })
    }

    fn forward(&self, latent: &Tensor) -> Result<Tensor> {
        let mut x = match &self.post_quant {
            Some(conv) => conv.forward(latent)?,
            None => latent.clone(),
        };
        x = self.middle.forward(&self.conv_in.forward(&x)?)?;
        for (resnets, up) in &self.stages {
            for resnet in resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(up) = up {
                x = up.forward(&x)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward(&x, Some(Activation::Silu))?)
    }
}

impl Vae {
    /// New weights.
    ///
    /// # Errors
    /// [`Error::Asset`] on sizes that do not fit together.
    pub fn new(config: &VaeConfig, seed: Seed) -> Result<Self> {
        Self::build(config, Builder::seeded(seed))
    }

    /// Weights of a file. Old files call the attention's layers `query`, `key`, `value` and
    /// `proj_attn`; both are read.
    ///
    /// # Errors
    /// [`Error::Asset`] with the tensor that is absent or has another shape.
    pub fn from_tensors(config: &VaeConfig, tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        Self::build(config, Builder::from_tensors(Self::new_names(tensors)?))
    }

    /// [`Vae::from_tensors`] with constants: pictures and latents still get their gradients.
    ///
    /// # Errors
    /// As [`Vae::from_tensors`].
    pub fn frozen(config: &VaeConfig, tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        Self::build(config, Builder::from_tensors(Self::new_names(tensors)?).frozen())
    }

    fn new_names(tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        let pairs = [
            (".query.", ".to_q."),
            (".key.", ".to_k."),
            (".value.", ".to_v."),
            (".proj_attn.", ".to_out.0."),
        ];
        tensors
            .into_iter()
            .map(|(name, tensor)| {
                if !name.contains("mid_block.attentions.") {
                    return Ok((name, tensor));
                }
                let name = pairs.iter().fold(name, |name, (old, new)| name.replace(old, new));
                // some old files keep these as 1 × 1 convolutions
                let tensor = if tensor.rank() == 4 { tensor.flatten_from(1)? } else { tensor };
                Ok((name, tensor))
            })
            .collect()
    }

    fn build(config: &VaeConfig, mut builder: Builder) -> Result<Self> {
        config.check()?;
        let encoder = Encoder::new(&mut builder, config)?;
        let decoder = Decoder::new(&mut builder, config)?;
        Ok(Self { config: config.clone(), encoder, decoder, parameters: builder.finish() })
    }

    /// Sizes.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// The trainable tensors, under diffusers' names.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Pictures `[batch, 3, height, width]` in -1..1 → latents of a [`VaeConfig::factor`]-th of
    /// the sides.
    ///
    /// # Errors
    /// [`Error::Usage`] when the factor does not divide the sides.
    pub fn encode(&self, pictures: &Tensor) -> Result<Posterior> {
        let (_, channels, height, width) = pictures.dims4()?;
        let factor = self.config.factor();
        if channels != self.config.in_channels
            || !height.is_multiple_of(factor)
            || !width.is_multiple_of(factor)
        {
            return Err(Error::usage(format!(
                "pictures {:?}; the autoencoder takes {} channels and sides divisible by {factor}",
                pictures.dims(),
                self.config.in_channels
            )));
        }
        let moments = self.encoder.forward(pictures)?;
        let half = self.config.latent_channels;
        Ok(Posterior {
            mean: moments.narrow(1, 0, half)?.contiguous()?,
            log_variance: moments.narrow(1, half, half)?.clamp(-30f32, 20f32)?.contiguous()?,
        })
    }

    /// Latents `[batch, latent_channels, h, w]` → pictures, not cut to -1..1.
    ///
    /// # Errors
    /// [`Error::Usage`] on another number of channels.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        if latents.dims4()?.1 != self.config.latent_channels {
            return Err(Error::usage(format!(
                "latents {:?}; the autoencoder takes {} channels",
                latents.dims(),
                self.config.latent_channels
            )));
        }
        self.decoder.forward(latents)
    }
}
