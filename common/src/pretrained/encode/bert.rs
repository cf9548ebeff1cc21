//! BERT ([Devlin et al. 2019](https://arxiv.org/abs/1810.04805)) under transformers' names, without
//! pooler and heads: embeddings, then layers that norm after each sum. Gradients reach all weights.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use crate::nn::{Builder, Embedding, LayerNorm, Linear, Mlp};
use crate::ops::{self, Activation, AttentionOptions};
use crate::weights::Safetensors;
use crate::{Error, Result};

/// `config.json` of a BERT; fields that change nothing here are left out.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BertConfig {
    /// Tokens.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// `gelu`, `gelu_new`, `gelu_pytorch_tanh` or `relu`.
    pub hidden_act: String,
    /// Longest text.
    pub max_position_embeddings: usize,
    /// Kinds of segments.
    pub type_vocab_size: usize,
    /// Added to the variance in norms.
    pub layer_norm_eps: f64,
    /// Only `absolute` (learnt positions) is known, and what an absent field means.
    #[serde(default)]
    pub position_embedding_type: Option<String>,
}

impl BertConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`Error::Asset`] with field and value.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let config: Self = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// The activation, when the sizes are a model's.
    fn check(&self) -> Result<Activation> {
        let (heads, width) = (self.num_attention_heads, self.hidden_size);
        if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
            return Err(bad(format!("{heads} attention heads do not divide hidden_size {width}")));
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0) {
            return Err(bad(format!("layer_norm_eps is {}", self.layer_norm_eps)));
        }
        if let Some(positions) = &self.position_embedding_type
            && positions != "absolute"
        {
            let problem = format!("position_embedding_type is {positions}, expected absolute");
            return Err(bad(problem));
        }
        match self.hidden_act.as_str() {
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => Err(bad(format!("hidden_act is {other}, expected gelu, gelu_new or relu"))),
        }
    }
}

fn bad(problem: String) -> Error {
    Error::asset("config.json", problem, "use the folder of a BERT as transformers writes it")
}

/// `norm(x + attention(x))`, then `norm(x + mlp(x))`.
#[derive(Debug, Clone)]
struct Layer {
    /// Queries, keys, values, output.
    attention: [Linear; 4],
    norm_attention: LayerNorm,
    mlp: Mlp,
    norm_mlp: LayerNorm,
    heads: usize,
}

impl Layer {
    fn new(b: &mut Builder, config: &BertConfig, activation: Activation) -> Result<Self> {
        let (width, inner, eps) =
            (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let linear = |b: &mut Builder, name: &str, inputs: usize, outputs: usize| {
            b.within(name, |b| Linear::new(b, inputs, outputs, true))
        };
        let norm = |b: &mut Builder, name: &str| b.within(name, |b| LayerNorm::new(b, width, eps));
        Ok(Self {
            attention: [
                linear(b, "attention.self.query", width, width)?,
                linear(b, "attention.self.key", width, width)?,
                linear(b, "attention.self.value", width, width)?,
                linear(b, "attention.output.dense", width, width)?,
            ],
            norm_attention: norm(b, "attention.output.LayerNorm")?,
            mlp: Mlp::new(
                linear(b, "intermediate.dense", width, inner)?,
                linear(b, "output.dense", inner, width)?,
                activation,
            ),
            norm_mlp: norm(b, "output.LayerNorm")?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let part = |which: usize| {
            let part = self.attention[which].forward(x)?;
            Ok::<_, Error>(part.reshape((batch, tokens, self.heads, width / self.heads))?)
        };
        let mixed = ops::attention(&part(0)?, &part(1)?, &part(2)?, options)?;
        let mixed = self.attention[3].forward(&mixed.reshape((batch, tokens, width))?)?;
        let x = self.norm_attention.forward(&(x + mixed)?)?;
        self.norm_mlp.forward(&(self.mlp.forward(&x)? + &x)?)
    }
}

/// The model up to its last hidden states.
#[derive(Debug, Clone)]
pub struct Bert {
    words: Embedding,
    positions: Embedding,
    types: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl Bert {
    /// Weights of a file or a seed.
    ///
    /// # Errors
    /// [`Error::Asset`] with the field that no model has, or the tensor that is absent or has
    /// another shape.
    pub fn new(b: &mut Builder, config: &BertConfig) -> Result<Self> {
        let activation = config.check()?;
        let width = config.hidden_size;
        let (words, positions, types, norm) = b.within("embeddings", |b| {
            let table = |b: &mut Builder, name: &str, rows: usize| {
                b.within(name, |b| Embedding::new(b, rows, width, 0.02))
            };
            Ok((
                table(b, "word_embeddings", config.vocab_size)?,
                table(b, "position_embeddings", config.max_position_embeddings)?,
                table(b, "token_type_embeddings", config.type_vocab_size)?,
                b.within("LayerNorm", |b| LayerNorm::new(b, width, config.layer_norm_eps))?,
            ))
        })?;
        let layer =
            |at| b.within(format!("encoder.layer.{at}"), |b| Layer::new(b, config, activation));
        let layers = (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { words, positions, types, norm, layers })
    }

    /// Frozen weights of a `BertModel`'s file, or those after `bert.` in one of a model with a head.
    ///
    /// # Errors
    /// As [`Bert::new`].
    pub fn frozen(config: &BertConfig, weights: &Safetensors) -> Result<Self> {
        let tensors = weights.float_tensors()?.into_iter();
        let tensors: BTreeMap<String, Tensor> =
            tensors.map(|(name, tensor)| (current_name(&name), tensor)).collect();
        Self::new(&mut Builder::from_tensors(tensors).frozen(), config)
    }

    /// Last hidden states `[batch, tokens, width]` of token ids and the kinds of their segments
    /// (both `u32`, `[batch, tokens]`). Keys where `mask` (same shape) is 0 are not seen; the
    /// states there mean nothing.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the shapes differ, an id is outside its table, or there are more
    /// tokens than positions.
    pub fn forward(&self, ids: &Tensor, types: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let places = Tensor::arange(0u32, ids.dim(1)? as u32, &Device::Cpu)?;
        let x = (self.words.forward(ids)? + self.types.forward(types)?)?;
        let mut x = self.norm.forward(&x.broadcast_add(&self.positions.forward(&places)?)?)?;
        let key_mask = Some(mask.clone());
        let options = AttentionOptions { key_mask, ..AttentionOptions::default() };
        for layer in &self.layers {
            x = layer.forward(&x, &options)?;
        }
        Ok(x)
    }
}

/// Without the prefix of models with a head, and with the norms' names of today.
fn current_name(name: &str) -> String {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    let renamed = |old: &str, new: &str| Some(format!("{}{new}", name.strip_suffix(old)?));
    renamed("LayerNorm.gamma", "LayerNorm.weight")
        .or_else(|| renamed("LayerNorm.beta", "LayerNorm.bias"))
        .unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::golden;

    #[test]
    fn old_names_are_read() {
        for (old, new) in [
            ("bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
            ("encoder.layer.0.output.LayerNorm.beta", "encoder.layer.0.output.LayerNorm.bias"),
            ("bert.encoder.layer.0.output.dense.bias", "encoder.layer.0.output.dense.bias"),
        ] {
            assert_eq!(current_name(old), new);
        }
    }

    #[test]
    fn a_config_of_no_model_is_refused() {
        let folder = golden(env!("CARGO_MANIFEST_DIR"), "bert_tiny");
        let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
        for (from, to, problem) in [
            ("\"num_attention_heads\": 4", "\"num_attention_heads\": 5", "do not divide"),
            ("\"num_attention_heads\": 4", "\"num_attention_heads\": 0", "do not divide"),
            ("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"swish\"", "hidden_act is swish"),
            ("1e-12", "-1.0", "layer_norm_eps is -1"),
            ("\"use_cache\"", "\"position_embedding_type\": \"rotary\", \"use_cache\"", "rotary"),
        ] {
            let error = BertConfig::from_json(text.replace(from, to).as_bytes()).unwrap_err();
            assert!(error.to_string().contains(problem), "{error}");
        }
    }
}
