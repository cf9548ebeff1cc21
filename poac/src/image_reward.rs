//! ImageReward (Xu et al. 2023): how well people would like a picture for a prompt. A vision
//! transformer reads the picture, a BERT with cross-attention reads the prompt beside it (BLIP), and
//! an MLP of LAION's form turns the first token into the raw reward of Eq. 9.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use common::assets::Assets;
use common::diffusion::clip_pixels;
use common::nn::{Attention, AttentionInputs, Builder, Heads, Init, LayerNorm, Linear, Mlp};
use common::ops::{self, Activation, AttentionOptions};
use common::stable_diffusion::ModelFolder;
use common::tokenizer::{Special, Tokenizer};
use common::weights::Safetensors;
use common::{Error, Result};
use serde::Deserialize;

use crate::model::QualityHead;
use crate::model::reward::Standard;

/// Tokens of a prompt, cut off or padded.
const LENGTH: usize = 35;

/// Sizes; the defaults are the published model's (ViT-L/16 and BERT base).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct ImageRewardConfig {
    /// Pixels of a side.
    pub image_size: usize,
    /// Pixels of a patch's side.
    pub patch_size: usize,
    /// Width of the picture's tokens.
    pub vision_width: usize,
    /// Blocks of the vision transformer.
    pub vision_layers: usize,
    /// Its attention heads.
    pub vision_heads: usize,
    /// Width of the text's tokens.
    pub hidden_size: usize,
    /// Layers of the text encoder.
    pub num_hidden_layers: usize,
    /// Its attention heads.
    pub num_attention_heads: usize,
    /// Inner width of its MLPs.
    pub intermediate_size: usize,
    /// Tokens.
    pub vocab_size: usize,
    /// Positions.
    pub max_position_embeddings: usize,
    /// ε of the text encoder's norms.
    pub layer_norm_eps: f64,
    /// Widths of the MLP.
    pub reward_widths: [usize; 5],
}

impl Default for ImageRewardConfig {
    fn default() -> Self {
        Self {
            image_size: 224,
            patch_size: 16,
            vision_width: 1024,
            vision_layers: 24,
            vision_heads: 16,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            vocab_size: 30_524,
            max_position_embeddings: 512,
            layer_norm_eps: 1e-12,
            reward_widths: QualityHead::LAION,
        }
    }
}

/// A block of the vision transformer: norms before attention and MLP.
#[derive(Debug)]
struct VisionBlock {
    norm1: LayerNorm,
    attention: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
}

/// BERT's attention to its own tokens or to the picture's, with the norm after it.
#[derive(Debug)]
struct TextAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm: LayerNorm,
    heads: usize,
}

impl TextAttention {
    fn new(b: &mut Builder, config: &ImageRewardConfig, from: usize) -> Result<Self> {
        let d = config.hidden_size;
        let linear = |b: &mut Builder, name: &str, inputs: usize| {
            b.within(name, |b| Linear::new(b, inputs, d, true))
        };
        Ok(Self {
            query: linear(b, "self.query", d)?,
            key: linear(b, "self.key", from)?,
            value: linear(b, "self.value", from)?,
            output: linear(b, "output.dense", d)?,
            norm: b.within("output.LayerNorm", |b| LayerNorm::new(b, d, config.layer_norm_eps))?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor, from: &Tensor, key_mask: Option<Tensor>) -> Result<Tensor> {
        let (batch, tokens, d) = x.dims3()?;
        let split = |x: &Tensor| x.reshape((batch, x.dim(1)?, self.heads, d / self.heads));
        let [q, k, v] =
            [self.query.forward(x)?, self.key.forward(from)?, self.value.forward(from)?];
        let options = AttentionOptions { scale: None, causal: false, key_mask };
        let mixed = ops::attention(&split(&q)?, &split(&k)?, &split(&v)?, &options)?;
        let mixed = self.output.forward(&mixed.reshape((batch, tokens, d))?)?;
        self.norm.forward(&(x + mixed)?)
    }
}

#[derive(Debug)]
struct TextLayer {
    own: TextAttention,
    cross: TextAttention,
    mlp: Mlp,
    norm: LayerNorm,
}

/// Prompts as tokens, `[n, 35]` each.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// Ids.
    pub ids: Tensor,
    /// 1 = a token, 0 = padding.
    pub mask: Tensor,
}

/// The frozen model; pictures get gradients.
#[derive(Debug)]
pub struct ImageReward {
    config: ImageRewardConfig,
    /// `[width, 3 · patch²]` and its bias.
    patch: [Tensor; 2],
    start: Tensor,
    places: Tensor,
    blocks: Vec<VisionBlock>,
    vision_norm: LayerNorm,
    words: Tensor,
    positions: Tensor,
    text_norm: LayerNorm,
    layers: Vec<TextLayer>,
    head: QualityHead,
    tokenizer: Tokenizer,
}

impl ImageReward {
    /// Opens `hf:OWNER/NAME[@REVISION]` or a folder with `model.safetensors` under the names of the
    /// published checkpoint, the `tokenizer.json` of `bert-base-uncased`, and for other sizes than the
    /// published ones a `config.json`.
    ///
    /// # Errors
    /// [`Error::Asset`] with the file, tensor or field that is wrong or absent.
    pub fn open(spec: &str, assets: &Assets) -> Result<Self> {
        let folder = ModelFolder::parse(spec, assets)?;
        let config = match folder.file("config.json") {
            Ok(path) => read_config(&path)?,
            Err(_) => ImageRewardConfig::default(),
        };
        let tensors = Safetensors::open(&folder.file("model.safetensors")?)?.float_tensors()?;
        let path = folder.file("tokenizer.json")?;
        let tokenizer = Tokenizer::from_json_file(&path)?;
        let known = tokenizer.vocabulary_size();
        if known > config.vocab_size {
            return Err(Error::asset(
                path.display().to_string(),
                format!("{known} tokens, the model has {}", config.vocab_size),
                "use the tokenizer of bert-base-uncased",
            ));
        }
        Self::build(config, tensors.into_iter().collect(), tokenizer)
    }

    fn build(
        config: ImageRewardConfig,
        tensors: BTreeMap<String, Tensor>,
        tokenizer: Tokenizer,
    ) -> Result<Self> {
        let c = &config;
        for (what, width, heads) in [
            ("vision", c.vision_width, c.vision_heads),
            ("text", c.hidden_size, c.num_attention_heads),
        ] {
            if heads == 0 || width % heads != 0 {
                let problem = format!("{heads} {what} heads do not divide the width {width}");
                return Err(Error::asset("ImageReward config", problem, "use the model's own"));
            }
        }
        let head: BTreeMap<String, Tensor> = tensors
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix("mlp.")?.to_owned(), t.clone())))
            .collect();
        let head = QualityHead::frozen(c.hidden_size, c.reward_widths, head)?;
        let mut builder = Builder::from_tensors(tensors).frozen();
        let any = Init::Constant(0.0);
        let (v, d, p) = (c.vision_width, c.hidden_size, c.patch_size);
        let linear = |b: &mut Builder, name: &str, inputs: usize, outputs: usize| {
            b.within(name, |b| Linear::new(b, inputs, outputs, true))
        };
        let norm = |b: &mut Builder, name: &str, width: usize, eps: f64| {
            b.within(name, |b| LayerNorm::new(b, width, eps))
        };
        let heads =
            Heads { heads: c.vision_heads, kv_heads: c.vision_heads, dim: v / c.vision_heads };
        let block = |b: &mut Builder| {
            let (qkv, out) = (linear(b, "attn.qkv", v, 3 * v)?, linear(b, "attn.proj", v, v)?);
            let (up, down) = (linear(b, "mlp.fc1", v, 4 * v)?, linear(b, "mlp.fc2", 4 * v, v)?);
            Ok(VisionBlock {
                norm1: norm(b, "norm1", v, 1e-6)?,
                attention: Attention::packed(qkv, out, heads),
                norm2: norm(b, "norm2", v, 1e-6)?,
                mlp: Mlp::new(up, down, Activation::Gelu),
            })
        };
        let side = c.image_size / p.max(1);
        let (patch, start, places, blocks, vision_norm) =
            builder.within("blip.visual_encoder", |b| {
                let weight = b.tensor("patch_embed.proj.weight", (v, 3, p, p), any)?;
                let bias = b.tensor("patch_embed.proj.bias", v, any)?;
                let blocks = (0..c.vision_layers)
                    .map(|at| b.within(format!("blocks.{at}"), block))
                    .collect::<Result<Vec<_>>>()?;
                let places = b.tensor("pos_embed", (1, 1 + side * side, v), any)?;
                let start = b.tensor("cls_token", (1, 1, v), any)?;
                let patch = [weight.flatten_from(1)?, bias];
                Ok((patch, start, places, blocks, norm(b, "norm", v, 1e-6)?))
            })?;
        let eps = c.layer_norm_eps;
        let layer = |b: &mut Builder| {
            let up = linear(b, "intermediate.dense", d, c.intermediate_size)?;
            let down = linear(b, "output.dense", c.intermediate_size, d)?;
            Ok(TextLayer {
                own: b.within("attention", |b| TextAttention::new(b, c, d))?,
                cross: b.within("crossattention", |b| TextAttention::new(b, c, v))?,
                mlp: Mlp::new(up, down, Activation::Gelu),
                norm: norm(b, "output.LayerNorm", d, eps)?,
            })
        };
        let (words, positions, text_norm, layers) = builder.within("blip.text_encoder", |b| {
            let words = b.tensor("embeddings.word_embeddings.weight", (c.vocab_size, d), any)?;
            let name = "embeddings.position_embeddings.weight";
            let positions = b.tensor(name, (c.max_position_embeddings, d), any)?;
            let layers = (0..c.num_hidden_layers)
                .map(|at| b.within(format!("encoder.layer.{at}"), layer))
                .collect::<Result<Vec<_>>>()?;
            Ok((words, positions, norm(b, "embeddings.LayerNorm", d, eps)?, layers))
        })?;
        Ok(Self {
            patch,
            start,
            places,
            blocks,
            vision_norm,
            words,
            positions,
            text_norm,
            layers,
            head,
            tokenizer,
            config,
        })
    }

    /// Prompts as tokens.
    ///
    /// # Errors
    /// [`Error::Asset`] when the tokenizer has no BERT tokens.
    pub fn tokens(&self, prompts: &[&str]) -> Result<Tokens> {
        let id = |token: &str| {
            self.tokenizer.id_of(token).ok_or_else(|| {
                let problem = format!("it has no token {token}");
                Error::asset("ImageReward tokenizer", problem, "use bert-base-uncased's")
            })
        };
        let (start, end, padding) = (id("[CLS]")?, id("[SEP]")?, id("[PAD]")?);
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let mut row = self.tokenizer.encode(prompt, Special::AsText)?;
            row.truncate(LENGTH - 2);
            row.insert(0, start);
            row.push(end);
            mask.extend((0..LENGTH).map(|at| f32::from(u8::from(at < row.len()))));
            row.resize(LENGTH, padding);
            ids.extend(row);
        }
        let shape = (prompts.len(), LENGTH);
        Ok(Tokens {
            ids: Tensor::from_vec(ids, shape, &Device::Cpu)?,
            mask: Tensor::from_vec(mask, shape, &Device::Cpu)?,
        })
    }

    /// Eq. 9: the standardised reward `[n]` of pictures `[n, 3, h, w]` in 0..1 for as many prompts.
    ///
    /// # Errors
    /// None but bugs.
    pub fn reward(&self, pictures: &Tensor, prompts: &Tokens) -> Result<Tensor> {
        let seen = self.see(&clip_pixels(pictures, self.config.image_size)?)?;
        let (n, tokens) = prompts.ids.dims2()?;
        let words = ops::embedding(&self.words, &prompts.ids)?;
        let words = words.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?;
        let mut hidden = self.text_norm.forward(&words)?;
        for layer in &self.layers {
            hidden = layer.own.forward(&hidden, &hidden, Some(prompts.mask.clone()))?;
            hidden = layer.cross.forward(&hidden, &seen, None)?;
            hidden = layer.norm.forward(&(&hidden + layer.mlp.forward(&hidden)?)?)?;
        }
        let first = hidden.narrow(1, 0, 1)?.reshape((n, self.config.hidden_size))?;
        Standard::IMAGE_REWARD.apply(&self.head.raw(&first)?)
    }

    /// The vision transformer: `[n, 3, size, size]` → `[n, 1 + patches, width]`.
    fn see(&self, pixels: &Tensor) -> Result<Tensor> {
        let (n, channels, size, _) = pixels.dims4()?;
        let p = self.config.patch_size;
        let side = size / p;
        let split = pixels.reshape(&[n, channels, side, p, side, p][..])?;
        let patches = split.permute(vec![0, 2, 4, 1, 3, 5])?.contiguous()?;
        let patches = patches.reshape((n, side * side, channels * p * p))?;
        let [weight, bias] = &self.patch;
        let patches = ops::linear(&patches, weight, Some(bias))?;
        let start = self.start.broadcast_as((n, 1, self.config.vision_width))?;
        let mut hidden = Tensor::cat(&[&start.contiguous()?, &patches], 1)?;
        hidden = hidden.broadcast_add(&self.places)?;
        for block in &self.blocks {
            let inputs = AttentionInputs { bidirectional: true, ..AttentionInputs::default() };
            let x = block.norm1.forward(&hidden)?;
            hidden = (&hidden + block.attention.forward(&x, inputs)?)?;
            hidden = (&hidden + block.mlp.forward(&block.norm2.forward(&hidden)?)?)?;
        }
        self.vision_norm.forward(&hidden)
    }
}

fn read_config(path: &Path) -> Result<ImageRewardConfig> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|error| {
        Error::asset(path.display().to_string(), error.to_string(), "use ImageReward's sizes")
    })
}
