//! CLIP's text and vision encoders ([Radford et al. 2021](https://arxiv.org/abs/2103.00020)) under
//! transformers' names: SD's text encoder, SDXL's second one with a projection, and the two sides of
//! the image–text score. Gradients reach pictures and weights.

use std::collections::BTreeMap;

use candle_core::{D, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::config::{bad, object, refuse_others, typed};
use crate::nn::{Builder, Embedding, Init, LayerNorm, Linear, Parameters};
use crate::ops::{self, Activation, AttentionOptions};
use crate::{Error, Result};

/// `config.json` of a CLIP text encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipTextConfig {
    /// Tokens.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Longest text; 77 in all public models.
    pub max_position_embeddings: usize,
    /// `quick_gelu` or `gelu`.
    #[serde(default = "quick_gelu")]
    pub hidden_act: String,
    /// Added to the variance in norms.
    #[serde(default = "eps")]
    pub layer_norm_eps: f64,
    /// The pooled position is the first of this token; 2 (old files) means the largest id.
    #[serde(default = "eos")]
    pub eos_token_id: u32,
    /// Width of the common space.
    #[serde(default = "projection")]
    pub projection_dim: usize,
}

/// `config.json` of a CLIP vision encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipVisionConfig {
    /// Width.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Pixels of a picture's side.
    pub image_size: usize,
    /// Pixels of a patch's side.
    pub patch_size: usize,
    /// `quick_gelu` or `gelu`.
    #[serde(default = "quick_gelu")]
    pub hidden_act: String,
    /// Added to the variance in norms.
    #[serde(default = "eps")]
    pub layer_norm_eps: f64,
    /// Width of the common space.
    #[serde(default = "projection")]
    pub projection_dim: usize,
}

/// `config.json` of a CLIP with both sides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipConfig {
    /// The text side.
    pub text_config: ClipTextConfig,
    /// The vision side.
    pub vision_config: ClipVisionConfig,
    /// Width of the common space.
    #[serde(default = "projection")]
    pub projection_dim: usize,
}

fn quick_gelu() -> String {
    "quick_gelu".into()
}
fn eps() -> f64 {
    1e-5
}
fn eos() -> u32 {
    49_407
}
fn projection() -> usize {
    512
}

impl ClipTextConfig {
    /// Reads the `config.json` of a `CLIPTextModel` or `CLIPTextModelWithProjection`.
    ///
    /// # Errors
    /// [`Error::Asset`] with field and value.
    pub fn from_json(text: &str) -> Result<Self> {
        let fields = object("text_encoder/config.json", text)?;
        refuse_others("text_encoder/config.json", &fields, &[("use_attention_mask", Value::Null)])?;
        let config: Self = typed("text_encoder/config.json", fields)?;
        config.layers()?;
        Ok(config)
    }

    fn layers(&self) -> Result<LayerSizes> {
        let positions = self.max_position_embeddings;
        if !(1..=1 << 22).contains(&self.vocab_size) || !(1..=4096).contains(&positions) {
            return Err(bad(
                "text_encoder/config.json",
                format!("vocab_size {} with {positions} positions", self.vocab_size),
            ));
        }
        LayerSizes::new(
            "text_encoder/config.json",
            [self.hidden_size, self.intermediate_size, self.num_hidden_layers],
            [self.num_attention_heads, self.projection_dim],
            &self.hidden_act,
            self.layer_norm_eps,
        )
    }
}

impl ClipVisionConfig {
    fn layers(&self) -> Result<LayerSizes> {
        let (size, patch) = (self.image_size, self.patch_size);
        if patch == 0 || size == 0 || size > 4096 || !size.is_multiple_of(patch) {
            return Err(bad(
                "vision config.json",
                format!("image_size {size} with patch_size {patch}"),
            ));
        }
        LayerSizes::new(
            "vision config.json",
            [self.hidden_size, self.intermediate_size, self.num_hidden_layers],
            [self.num_attention_heads, self.projection_dim],
            &self.hidden_act,
            self.layer_norm_eps,
        )
    }
}

impl ClipConfig {
    /// Reads the `config.json` of a `CLIPModel`.
    ///
    /// # Errors
    /// [`Error::Asset`] with field and value.
    pub fn from_json(text: &str) -> Result<Self> {
        let mut fields = object("clip config.json", text)?;
        // a CLIPModel has one projection width; its parts' own may be stale
        let width = fields.get("projection_dim").cloned().unwrap_or_else(|| json!(projection()));
        for part in ["text_config", "vision_config"] {
            if let Some(Value::Object(part)) = fields.get_mut(part) {
                part.retain(|_, value| !value.is_null());
                part.insert("projection_dim".into(), width.clone());
            }
        }
        let config: Self = typed("clip config.json", fields)?;
        config.text_config.layers()?;
        config.vision_config.layers()?;
        Ok(config)
    }
}

#[derive(Debug, Clone, Copy)]
struct LayerSizes {
    width: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    projection: usize,
    activation: Activation,
    eps: f64,
}

impl LayerSizes {
    fn new(
        file: &str,
        [width, inner, layers]: [usize; 3],
        [heads, projection]: [usize; 2],
        activation: &str,
        eps: f64,
    ) -> Result<Self> {
        let activation = match activation {
            "quick_gelu" => Activation::QuickGelu,
            "gelu" => Activation::Gelu,
            other => {
                let problem = format!("hidden_act is {other}, expected quick_gelu or gelu");
                return Err(bad(file, problem));
            }
        };
        let sizes = [width, inner, layers, heads, projection];
        if sizes.iter().any(|size| !(1..=1 << 16).contains(size))
            || layers > 256
            || !width.is_multiple_of(heads)
            || !(eps > 0.0 && eps < 1.0)
        {
            return Err(bad(
                file,
                format!(
                    "width {width}, inner {inner}, {layers} layers, {heads} heads, projection \
                     {projection}, eps {eps}: not a model's sizes"
                ),
            ));
        }
        Ok(Self { width, inner, layers, heads, projection, activation, eps })
    }
}

/// `x + attention(norm(x))`, then `x + mlp(norm(x))`.
#[derive(Debug, Clone)]
struct Layer {
    norm1: LayerNorm,
    /// Queries, keys, values, output.
    attention: [Linear; 4],
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
    sizes: LayerSizes,
}

impl Layer {
    fn new(b: &mut Builder, sizes: LayerSizes) -> Result<Self> {
        let LayerSizes { width, inner, eps, .. } = sizes;
        let linear = |b: &mut Builder, name: &str, inputs: usize, outputs: usize| {
            b.within(name, |b| Linear::new(b, inputs, outputs, true))
        };
        let norm = |b: &mut Builder, name: &str| b.within(name, |b| LayerNorm::new(b, width, eps));
        Ok(Self {
            norm1: norm(b, "layer_norm1")?,
            attention: [
                linear(b, "self_attn.q_proj", width, width)?,
                linear(b, "self_attn.k_proj", width, width)?,
                linear(b, "self_attn.v_proj", width, width)?,
                linear(b, "self_attn.out_proj", width, width)?,
            ],
            norm2: norm(b, "layer_norm2")?,
            up: linear(b, "mlp.fc1", width, inner)?,
            down: linear(b, "mlp.fc2", inner, width)?,
            sizes,
        })
    }

    fn all(b: &mut Builder, sizes: LayerSizes) -> Result<Vec<Self>> {
        let layer = |at| b.within(format!("encoder.layers.{at}"), |b| Self::new(b, sizes));
        (0..sizes.layers).map(layer).collect()
    }

    fn forward(&self, x: &Tensor, causal: bool) -> Result<Tensor> {
        let (batch, positions, width) = x.dims3()?;
        let LayerSizes { heads, activation, .. } = self.sizes;
        let inner = self.norm1.forward(x)?;
        let part = |which: usize| {
            let part = self.attention[which].forward(&inner)?;
            Ok::<_, Error>(part.reshape((batch, positions, heads, width / heads))?)
        };
        let options = AttentionOptions { causal, ..AttentionOptions::default() };
        let mixed = ops::attention(&part(0)?, &part(1)?, &part(2)?, &options)?;
        let x = (x + self.attention[3].forward(&mixed.reshape((batch, positions, width))?)?)?;
        let inner = self.up.forward_activation(&self.norm2.forward(&x)?, Some(activation))?;
        Ok((&x + self.down.forward(&inner)?)?)
    }
}

/// What a text encoder makes of token ids.
#[derive(Debug, Clone)]
pub struct ClipTextOutput {
    /// After the last layer and the final norm, `[batch, positions, width]`: the condition of SD.
    pub last: Tensor,
    /// Before the last layer, without norm, same shape: the condition of SDXL.
    pub penultimate: Tensor,
    /// `last` at the end token, `[batch, width]`.
    pub pooled: Tensor,
    /// `pooled` in the common space, `[batch, projection]`, where the model has a projection.
    pub embeds: Option<Tensor>,
}

/// `CLIPTextModel`, with or without a projection.
#[derive(Debug, Clone)]
pub struct ClipText {
    config: ClipTextConfig,
    tokens: Embedding,
    positions: Embedding,
    layers: Vec<Layer>,
    norm: LayerNorm,
    projection: Option<Linear>,
    parameters: Parameters,
}

impl ClipText {
    /// Weights of a file or a seed. `projected` asks for `text_projection` (CLIPModel and
    /// CLIPTextModelWithProjection).
    ///
    /// # Errors
    /// [`Error::Asset`] with the tensor that is absent or has another shape.
    pub fn build(config: &ClipTextConfig, projected: bool, mut builder: Builder) -> Result<Self> {
        let sizes = config.layers()?;
        let b = &mut builder;
        let (tokens, positions, layers, norm) = b.within("text_model", |b| {
            let table = |b: &mut Builder, name: &str, rows: usize| {
                b.within(name, |b| Embedding::new(b, rows, sizes.width, 0.02))
            };
            let tokens = table(b, "embeddings.token_embedding", config.vocab_size)?;
            let positions =
                table(b, "embeddings.position_embedding", config.max_position_embeddings)?;
            let layers = Layer::all(b, sizes)?;
            let norm =
                b.within("final_layer_norm", |b| LayerNorm::new(b, sizes.width, sizes.eps))?;
            Ok((tokens, positions, layers, norm))
        })?;
        let projection = match projected {
            true => Some(b.within("text_projection", |b| {
                Linear::new(b, sizes.width, sizes.projection, false)
            })?),
            false => None,
        };
        let (config, parameters) = (config.clone(), builder.finish());
        Ok(Self { config, tokens, positions, layers, norm, projection, parameters })
    }

    /// Frozen weights of a file; a bare `CLIPTextModel` of new files has no `text_model.` before
    /// its names, which is accepted.
    ///
    /// # Errors
    /// As [`ClipText::build`].
    pub fn frozen(
        config: &ClipTextConfig,
        projected: bool,
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        Self::build(config, projected, Builder::from_tensors(prefixed(tensors)).frozen())
    }

    /// Sizes.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// The tensors, under transformers' names.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Rows of token ids of one length.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is no row, the lengths differ, a row is empty or too long, or an
    /// id is outside the vocabulary (a tokenizer of another model).
    pub fn forward(&self, rows: &[Vec<u32>]) -> Result<ClipTextOutput> {
        let length = rows.first().map_or(0, Vec::len);
        let most = self.config.max_position_embeddings;
        if length == 0 || length > most || rows.iter().any(|row| row.len() != length) {
            return Err(Error::usage(format!(
                "CLIP text: {} rows, the first of {length} tokens; expected equal lengths of 1 to \
                 {most}",
                rows.len()
            )));
        }
        let vocabulary = self.config.vocab_size;
        if let Some(id) = rows.iter().flatten().find(|&&id| id as usize >= vocabulary) {
            return Err(Error::asset(
                "tokenizer",
                format!("token {id}, but the text encoder has {vocabulary} tokens"),
                "use the tokenizer that belongs to the model",
            ));
        }
        let flat: Vec<u32> = rows.iter().flatten().copied().collect();
        let ids = Tensor::from_vec(flat, (rows.len(), length), &Device::Cpu)?;
        let places = Tensor::arange(0u32, length as u32, &Device::Cpu)?;
        let positions = self.positions.forward(&places)?;
        let mut x = self.tokens.forward(&ids)?.broadcast_add(&positions)?;
        let mut penultimate = x.clone();
        for layer in &self.layers {
            penultimate.clone_from(&x);
            x = layer.forward(&x, true)?;
        }
        let last = self.norm.forward(&x)?;
        let ends = rows.iter().enumerate().map(|(at, row)| (at * length + self.end(row)) as u32);
        let ends = Tensor::from_vec(ends.collect::<Vec<_>>(), rows.len(), &Device::Cpu)?;
        let pooled = last.flatten_to(1)?.index_select(&ends, 0)?;
        let embeds = self.projection.as_ref().map(|layer| layer.forward(&pooled)).transpose()?;
        Ok(ClipTextOutput { last, penultimate, pooled, embeds })
    }

    /// Position of the end token.
    fn end(&self, row: &[u32]) -> usize {
        let end = self.config.eos_token_id;
        match end {
            2 => {
                let most = row.iter().max();
                row.iter().position(|id| Some(id) == most).unwrap_or(0)
            }
            end => row.iter().position(|&id| id == end).unwrap_or(0),
        }
    }
}

fn prefixed(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    if !tensors.contains_key("embeddings.token_embedding.weight") {
        return tensors;
    }
    let named = |name: String| match name.starts_with("text_projection") {
        true => name,
        false => format!("text_model.{name}"),
    };
    tensors.into_iter().map(|(name, tensor)| (named(name), tensor)).collect()
}

/// `CLIPVisionModelWithProjection`: the image side of CLIP.
#[derive(Debug, Clone)]
pub struct ClipVision {
    config: ClipVisionConfig,
    class: Tensor,
    patches: Tensor,
    positions: Embedding,
    norm_in: LayerNorm,
    layers: Vec<Layer>,
    norm_out: LayerNorm,
    projection: Linear,
    parameters: Parameters,
}

impl ClipVision {
    /// Weights of a file or a seed, with `visual_projection`.
    ///
    /// # Errors
    /// [`Error::Asset`] with the tensor that is absent or has another shape.
    pub fn build(config: &ClipVisionConfig, mut builder: Builder) -> Result<Self> {
        let sizes = config.layers()?;
        let (width, patch) = (sizes.width, config.patch_size);
        let tokens = (config.image_size / patch).pow(2) + 1;
        let b = &mut builder;
        let norm =
            |b: &mut Builder, name: &str| b.within(name, |b| LayerNorm::new(b, width, sizes.eps));
        let built = b.within("vision_model", |b| {
            let (class, patches, positions) = b.within("embeddings", |b| {
                let class = b.tensor("class_embedding", width, Init::Normal(0.02))?;
                let shape = (width, 3, patch, patch);
                let init = Init::Normal(0.02);
                let patches = b.within("patch_embedding", |b| b.tensor("weight", shape, init))?;
                let positions =
                    b.within("position_embedding", |b| Embedding::new(b, tokens, width, 0.02))?;
                Ok((class, patches, positions))
            })?;
            // transformers' spelling
            let norm_in = norm(b, "pre_layrnorm")?;
            let layers = Layer::all(b, sizes)?;
            Ok((class, patches, positions, norm_in, layers, norm(b, "post_layernorm")?))
        })?;
        let projection =
            b.within("visual_projection", |b| Linear::new(b, width, sizes.projection, false))?;
        let (class, patches, positions, norm_in, layers, norm_out) = built;
        let (config, parameters) = (config.clone(), builder.finish());
        Ok(Self {
            config,
            class,
            patches,
            positions,
            norm_in,
            layers,
            norm_out,
            projection,
            parameters,
        })
    }

    /// [`ClipVision::build`] with the constants of a file: pictures still get their gradients.
    ///
    /// # Errors
    /// As [`ClipVision::build`].
    pub fn frozen(config: &ClipVisionConfig, tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        Self::build(config, Builder::from_tensors(tensors).frozen())
    }

    /// Sizes.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// The tensors, under transformers' names.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Normalised pixels `[batch, 3, size, size]` ([`super::clip_pixels`]) → hidden states of the
    /// class token and the patches, `[batch, patches + 1, width]`.
    ///
    /// # Errors
    /// [`Error::Usage`] on another size.
    pub fn hidden(&self, pixels: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = pixels.dims4()?;
        let size = self.config.image_size;
        if (channels, height, width) != (3, size, size) {
            return Err(Error::usage(format!(
                "CLIP vision: pixels {:?}, expected 3 channels and sides of {size}",
                pixels.dims()
            )));
        }
        let patches = ops::conv2d(pixels, &self.patches, None, self.config.patch_size, 0)?;
        let patches = super::blocks::to_tokens(&patches)?;
        let class =
            self.class.reshape((1, 1, ()))?.broadcast_as((batch, 1, self.config.hidden_size))?;
        let x = Tensor::cat(&[&class.contiguous()?, &patches], 1)?;
        let places = Tensor::arange(0u32, x.dim(1)? as u32, &Device::Cpu)?;
        let x = x.broadcast_add(&self.positions.forward(&places)?)?;
        let mut x = self.norm_in.forward(&x)?;
        for layer in &self.layers {
            x = layer.forward(&x, false)?;
        }
        Ok(x)
    }

    /// Normalised pixels → features in the common space, `[batch, projection]`, not of unit length.
    ///
    /// # Errors
    /// As [`ClipVision::hidden`].
    pub fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let class = self.hidden(pixels)?.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        self.projection.forward(&self.norm_out.forward(&class)?)
    }
}

/// Cosine of matching rows `[n, width]` → `[n]`.
pub fn cosine(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let length = |x: &Tensor| (x.sqr()?.sum(D::Minus1)? + 1e-16)?.sqrt();
    Ok(((a * b)?.sum(D::Minus1)? / (length(a)? * length(b)?)?)?)
}
