//! `config.json` of the U-Net and the autoencoder, in the words of diffusers.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// One value for all levels, or one a level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// The same everywhere.
    One(usize),
    /// By level, from the finest.
    Many(Vec<usize>),
}

impl From<usize> for OneOrMany {
    fn from(value: usize) -> Self {
        Self::One(value)
    }
}

impl OneOrMany {
    /// The value of a level.
    pub(super) fn at(&self, level: usize) -> Option<usize> {
        match self {
            Self::One(value) => Some(*value),
            Self::Many(values) => values.get(level).copied(),
        }
    }
}

/// Sizes of a `UNet2DConditionModel`. The default is Stable Diffusion 1.5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnetConfig {
    /// Channels of the latent; 9 for inpainting (latent, mask, masked latent).
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Channels a level, from the finest.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks a level on the way down; one more on the way up.
    pub layers_per_block: usize,
    /// `CrossAttnDownBlock2D` or `DownBlock2D` a level.
    pub down_block_types: Vec<String>,
    /// `CrossAttnUpBlock2D` or `UpBlock2D` a level, from the coarsest.
    pub up_block_types: Vec<String>,
    /// NUMBER of attention heads (a historical name) where `num_attention_heads` is absent.
    pub attention_head_dim: OneOrMany,
    /// Attention heads.
    pub num_attention_heads: Option<OneOrMany>,
    /// Transformer blocks in each attention.
    pub transformer_layers_per_block: OneOrMany,
    /// Width of the text tokens.
    pub cross_attention_dim: usize,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Added to the variance in the residual blocks' norms.
    pub norm_eps: f64,
    /// Projections around a transformer are linear layers instead of 1 × 1 convolutions.
    pub use_linear_projection: bool,
    /// Cosines before sines in the time code.
    pub flip_sin_to_cos: bool,
    /// Shift of the time code's frequencies.
    pub freq_shift: f64,
    /// `text_time` for SDXL: pooled text and picture sizes are added to the time embedding.
    pub addition_embed_type: Option<String>,
    /// Values of the code of each picture size.
    pub addition_time_embed_dim: Option<usize>,
    /// Pooled text plus six codes.
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// Side of the latent that the model was trained for.
    pub sample_size: Option<usize>,
}

impl Default for UnetConfig {
    fn default() -> Self {
        let cross = |name: &str, at: &[usize]| {
            let plain = name.trim_start_matches("CrossAttn").to_owned();
            (0..4).map(|l| if at.contains(&l) { plain.clone() } else { name.to_owned() }).collect()
        };
        Self {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2,
            down_block_types: cross("CrossAttnDownBlock2D", &[3]),
            up_block_types: cross("CrossAttnUpBlock2D", &[0]),
            attention_head_dim: 8.into(),
            num_attention_heads: None,
            transformer_layers_per_block: 1.into(),
            cross_attention_dim: 768,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            use_linear_projection: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            sample_size: Some(64),
        }
    }
}

/// What one level of the U-Net is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Level {
    pub(super) channels: usize,
    pub(super) heads: usize,
    pub(super) transformer_layers: usize,
    /// Attention on the way down, and on the way up.
    pub(super) cross: [bool; 2],
}

impl UnetConfig {
    /// Reads a `config.json`. What is not supported is refused rather than ignored.
    ///
    /// # Errors
    /// [`Error::Asset`] with field, value and what is supported.
    pub fn from_json(text: &str) -> Result<Self> {
        let fields = object("unet/config.json", text)?;
        let plain = [
            ("act_fn", json!("silu")),
            ("center_input_sample", json!(false)),
            ("class_embed_type", Value::Null),
            ("conv_in_kernel", json!(3)),
            ("conv_out_kernel", json!(3)),
            ("cross_attention_norm", Value::Null),
            ("downsample_padding", json!(1)),
            ("dual_cross_attention", json!(false)),
            ("encoder_hid_dim", Value::Null),
            ("encoder_hid_dim_type", Value::Null),
            ("mid_block_scale_factor", json!(1)),
            ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
            ("num_class_embeds", Value::Null),
            ("only_cross_attention", json!(false)),
            ("resnet_out_scale_factor", json!(1.0)),
            ("resnet_skip_time_act", json!(false)),
            ("resnet_time_scale_shift", json!("default")),
            ("reverse_transformer_layers_per_block", Value::Null),
            ("time_cond_proj_dim", Value::Null),
            ("time_embedding_act_fn", Value::Null),
            ("time_embedding_dim", Value::Null),
            ("time_embedding_type", json!("positional")),
            ("timestep_post_act", Value::Null),
        ];
        refuse_others("unet/config.json", &fields, &plain)?;
        let config: Self = typed("unet/config.json", fields)?;
        config.check()?;
        Ok(config)
    }

    /// Refuses sizes that can't belong to a model.
    ///
    /// # Errors
    /// [`Error::Asset`].
    pub fn check(&self) -> Result<()> {
        self.levels().map(drop)
    }

    pub(super) fn levels(&self) -> Result<Vec<Level>> {
        let bad = |problem: String| bad("unet/config.json", problem);
        let count = self.block_out_channels.len();
        if count == 0 || count > 8 {
            return Err(bad(format!("block_out_channels has {count} levels, expected 1 to 8")));
        }
        if self.down_block_types.len() != count || self.up_block_types.len() != count {
            return Err(bad(format!(
                "{} down and {} up block types for {count} levels",
                self.down_block_types.len(),
                self.up_block_types.len()
            )));
        }
        let sizes = [
            ("in_channels", self.in_channels, 64),
            ("out_channels", self.out_channels, 64),
            ("layers_per_block", self.layers_per_block, 16),
            ("cross_attention_dim", self.cross_attention_dim, 1 << 16),
            ("norm_num_groups", self.norm_num_groups, 1 << 10),
        ];
        for (name, size, most) in sizes {
            if size == 0 || size > most {
                return Err(bad(format!("{name} is {size}, expected 1 to {most}")));
            }
        }
        match self.addition_embed_type.as_deref() {
            None => {}
            Some("text_time") if self.text_time().is_some() => {}
            Some("text_time") => {
                return Err(bad(
                    "addition_embed_type text_time needs addition_time_embed_dim and \
                     projection_class_embeddings_input_dim"
                        .into(),
                ));
            }
            Some(other) => {
                return Err(bad(format!("addition_embed_type is {other}, expected text_time")));
            }
        }
        let heads = self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim);
        let kind = |name: &str, way: &str| match name.strip_suffix("Block2D") {
            Some(kind) if kind == format!("CrossAttn{way}") => Ok(true),
            Some(kind) if kind == way => Ok(false),
            _ => Err(bad(format!(
                "block type {name}, expected CrossAttn{way}Block2D or {way}Block2D"
            ))),
        };
        (0..count)
            .map(|level| {
                let channels = self.block_out_channels[level];
                let of = |name: &str, values: &OneOrMany| {
                    let found = values.at(level).filter(|&value| (1..=4096).contains(&value));
                    found
                        .ok_or_else(|| bad(format!("{name} has no usable value for level {level}")))
                };
                let heads = of("attention_head_dim", heads)?;
                if channels == 0
                    || channels > 1 << 14
                    || !channels.is_multiple_of(self.norm_num_groups)
                    || !channels.is_multiple_of(heads)
                {
                    return Err(bad(format!(
                        "{channels} channels in level {level}; {} groups and {heads} heads must \
                         divide them",
                        self.norm_num_groups
                    )));
                }
                Ok(Level {
                    channels,
                    heads,
                    transformer_layers: of(
                        "transformer_layers_per_block",
                        &self.transformer_layers_per_block,
                    )?,
                    cross: [
                        kind(&self.down_block_types[level], "Down")?,
                        kind(&self.up_block_types[count - 1 - level], "Up")?,
                    ],
                })
            })
            .collect()
    }

    /// Values of the code of a picture size and inputs of `add_embedding` (SDXL).
    pub(super) fn text_time(&self) -> Option<(usize, usize)> {
        let _ = self.addition_embed_type.as_ref()?;
        Some((self.addition_time_embed_dim?, self.projection_class_embeddings_input_dim?))
    }
}

/// Sizes of an `AutoencoderKL`. The default is Stable Diffusion 1.5's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// Channels of a picture.
    pub in_channels: usize,
    /// Channels of a decoded picture.
    pub out_channels: usize,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Channels a level, from the finest; each level but the last halves the sides.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks a level on the way down; one more on the way up.
    pub layers_per_block: usize,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// The diffusion model's latents are the autoencoder's times this (γ).
    pub scaling_factor: f64,
    /// 1 × 1 convolution after the encoder.
    pub use_quant_conv: bool,
    /// 1 × 1 convolution before the decoder.
    pub use_post_quant_conv: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            use_quant_conv: true,
            use_post_quant_conv: true,
        }
    }
}

impl VaeConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Error::Asset`] with field, value and what is supported.
    pub fn from_json(text: &str) -> Result<Self> {
        let fields = object("vae/config.json", text)?;
        let levels = fields.get("block_out_channels").and_then(Value::as_array).map_or(0, Vec::len);
        let all = |name: &str| Value::Array(vec![json!(name); levels]);
        let plain = [
            ("act_fn", json!("silu")),
            ("down_block_types", all("DownEncoderBlock2D")),
            ("up_block_types", all("UpDecoderBlock2D")),
            ("latents_mean", Value::Null),
            ("latents_std", Value::Null),
            ("mid_block_add_attention", json!(true)),
            ("shift_factor", Value::Null),
        ];
        refuse_others("vae/config.json", &fields, &plain)?;
        let config: Self = typed("vae/config.json", fields)?;
        config.check()?;
        Ok(config)
    }

    /// Refuses sizes that can't belong to a model.
    ///
    /// # Errors
    /// [`Error::Asset`].
    pub fn check(&self) -> Result<()> {
        let count = self.block_out_channels.len();
        let groups = self.norm_num_groups;
        let fits = |&channels: &usize| {
            channels > 0 && channels <= 1 << 14 && groups > 0 && channels.is_multiple_of(groups)
        };
        let channels = [self.in_channels, self.out_channels, self.latent_channels];
        if count == 0
            || count > 8
            || !self.block_out_channels.iter().all(fits)
            || !(1..=16).contains(&self.layers_per_block)
            || channels.iter().any(|c| !(1..=64).contains(c))
            || !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0)
        {
            return Err(bad(
                "vae/config.json",
                format!(
                    "channels {:?} with {groups} groups, {} layers, {channels:?} channels in, out \
                     and latent, scaling factor {}: not a model's sizes",
                    self.block_out_channels, self.layers_per_block, self.scaling_factor
                ),
            ));
        }
        Ok(())
    }

    /// Pixels a latent cell's side.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

pub(super) fn bad(file: &str, problem: impl Into<String>) -> Error {
    let remedy = "use the folder of a Stable Diffusion model as diffusers writes it";
    Error::asset(file, problem, remedy)
}

pub(super) fn object(file: &str, text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(bad(file, "is not a JSON object")),
        Err(error) => Err(bad(file, format!("is not JSON ({error})"))),
    }
}

/// The fields as a struct; others are left out.
pub(super) fn typed<T: serde::de::DeserializeOwned>(
    file: &str,
    mut fields: Map<String, Value>,
) -> Result<T> {
    fields.retain(|_, value| !value.is_null());
    serde_json::from_value(Value::Object(fields)).map_err(|error| bad(file, error.to_string()))
}

/// Fields that may be absent or null or have one value.
pub(super) fn refuse_others(
    file: &str,
    fields: &Map<String, Value>,
    allowed: &[(&str, Value)],
) -> Result<()> {
    for (name, allowed) in allowed {
        let found = fields.get(*name).unwrap_or(&Value::Null);
        let equal = match (found.as_f64(), allowed.as_f64()) {
            (Some(found), Some(allowed)) => found == allowed,
            _ => found == allowed,
        };
        if !found.is_null() && !equal {
            return Err(bad(file, format!("{name} is {found}, only {allowed} is supported")));
        }
    }
    Ok(())
}
