//! `config.json` of GPT-2, Llama and Qwen2, in the words of transformers.

use serde_json::{Map, Value, json};

use crate::ops::Activation;
use crate::{Error, Result};

/// Family of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Learned positions, LayerNorm, one projection for q, k, v, biases everywhere.
    Gpt2,
    /// Rotary positions, RMSNorm, SwiGLU, grouped keys and values.
    Llama,
    /// Llama with biases on q, k, v.
    Qwen2,
}

/// Sizes of a decoder-only language model.
#[derive(Debug, Clone, PartialEq)]
pub struct LmConfig {
    /// Family.
    pub architecture: Architecture,
    /// Tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Values a head.
    pub head_dim: usize,
    /// Longest sequence; GPT-2 has a position table of that size.
    pub max_position_embeddings: usize,
    /// Added to the variance in norms.
    pub norm_eps: f64,
    /// Base of the rotary frequencies; unused by GPT-2.
    pub rope_theta: f64,
    /// The output layer shares the embedding's weights.
    pub tie_word_embeddings: bool,
    /// Activation of GPT-2's feed-forward layers; the others use SiLU.
    pub activation: Activation,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
    /// Token that ends a text.
    pub eos_token_id: Option<u32>,
}

impl LmConfig {
    /// A Llama-shaped model with as many key/value heads as query heads, tied embeddings and an
    /// inner width of 4 × hidden.
    pub fn llama(
        vocab: usize,
        hidden: usize,
        layers: usize,
        heads: usize,
        positions: usize,
    ) -> Self {
        Self {
            architecture: Architecture::Llama,
            vocab_size: vocab,
            hidden_size: hidden,
            intermediate_size: 4 * hidden,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: hidden / heads.max(1),
            max_position_embeddings: positions,
            norm_eps: 1e-6,
            rope_theta: 10_000.0,
            tie_word_embeddings: true,
            activation: Activation::Silu,
            initializer_range: 0.02,
            eos_token_id: None,
        }
    }

    /// A GPT-2-shaped model.
    pub fn gpt2(
        vocab: usize,
        hidden: usize,
        layers: usize,
        heads: usize,
        positions: usize,
    ) -> Self {
        Self {
            architecture: Architecture::Gpt2,
            norm_eps: 1e-5,
            activation: Activation::GeluTanh,
            ..Self::llama(vocab, hidden, layers, heads, positions)
        }
    }

    /// Reads a `config.json`. What is not supported (scaled rotary frequencies, sliding windows,
    /// other activations) is refused rather than ignored.
    pub fn from_json(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| bad("config.json", format!("is not JSON ({error})")))?;
        let fields = Fields(
            value
                .as_object()
                .ok_or_else(|| bad("config.json", "is not a JSON object".to_owned()))?,
        );
        let config = match fields.text("model_type")? {
            "gpt2" => fields.gpt2()?,
            "llama" => fields.llama(Architecture::Llama)?,
            "qwen2" => fields.llama(Architecture::Qwen2)?,
            other => {
                return Err(bad(
                    "model_type",
                    format!("is {other}, expected gpt2, llama or qwen2"),
                ));
            }
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses sizes that can't belong to a model.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 17),
            ("intermediate_size", self.intermediate_size, 1 << 19),
            ("num_hidden_layers", self.num_hidden_layers, 512),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 12),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 24),
        ];
        for (name, size, most) in sizes {
            if size == 0 || size > most {
                return Err(bad(name, format!("is {size}, expected 1 to {most}")));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(bad("num_key_value_heads", "does not divide num_attention_heads".into()));
        }
        if self.architecture == Architecture::Gpt2
            && self.head_dim * self.num_attention_heads != self.hidden_size
        {
            return Err(bad("n_head", "does not divide n_embd".into()));
        }
        if self.architecture != Architecture::Gpt2 && !self.head_dim.is_multiple_of(2) {
            return Err(bad("head_dim", "is odd; rotary positions turn pairs of values".into()));
        }
        Ok(())
    }

    /// `config.json` that transformers reads.
    pub fn to_json(&self) -> Value {
        let common = json!({
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "eos_token_id": self.eos_token_id,
            "bos_token_id": self.eos_token_id,
            "torch_dtype": "float32",
            "use_cache": true,
        });
        let own = match self.architecture {
            Architecture::Gpt2 => json!({
                "architectures": ["GPT2LMHeadModel"],
                "model_type": "gpt2",
                "n_embd": self.hidden_size,
                "n_layer": self.num_hidden_layers,
                "n_head": self.num_attention_heads,
                "n_inner": self.intermediate_size,
                "n_positions": self.max_position_embeddings,
                "layer_norm_epsilon": self.norm_eps,
                "activation_function": activation_name(self.activation),
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
                "resid_pdrop": 0.0,
            }),
            Architecture::Llama | Architecture::Qwen2 => {
                let llama = self.architecture == Architecture::Llama;
                let name = if llama { "LlamaForCausalLM" } else { "Qwen2ForCausalLM" };
                json!({
                    "architectures": [name],
                    "model_type": if llama { "llama" } else { "qwen2" },
                    "hidden_size": self.hidden_size,
                    "intermediate_size": self.intermediate_size,
                    "num_hidden_layers": self.num_hidden_layers,
                    "num_attention_heads": self.num_attention_heads,
                    "num_key_value_heads": self.num_key_value_heads,
                    "head_dim": self.head_dim,
                    "max_position_embeddings": self.max_position_embeddings,
                    "rms_norm_eps": self.norm_eps,
                    "rope_theta": self.rope_theta,
                    "hidden_act": "silu",
                    "attention_bias": false,
                    "mlp_bias": false,
                })
            }
        };
        let mut all = Map::new();
        for part in [own, common] {
            if let Value::Object(part) = part {
                all.extend(part);
            }
        }
        Value::Object(all)
    }
}

fn bad(field: &str, problem: String) -> Error {
    let remedy = "use the config.json of a supported model (GPT-2, Llama, Qwen2)";
    Error::asset("config.json", format!("{field} {problem}"), remedy)
}

fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::GeluTanh => "gelu_new",
        Activation::Gelu => "gelu",
        Activation::QuickGelu => "quick_gelu",
        Activation::Silu => "silu",
        Activation::Relu => "relu",
    }
}

struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn text(&self, name: &str) -> Result<&str> {
        self.0
            .get(name)
            .and_then(Value::as_str)
            .ok_or_else(|| bad(name, "is absent or no text".into()))
    }

    fn size(&self, name: &str) -> Result<usize> {
        self.maybe_size(name)?.ok_or_else(|| bad(name, "is absent".into()))
    }

    fn maybe_size(&self, name: &str) -> Result<Option<usize>> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_u64()
                .and_then(|size| usize::try_from(size).ok())
                .map(Some)
                .ok_or_else(|| bad(name, format!("is {value}, expected a whole number"))),
        }
    }

    fn number(&self, name: &str, default: f64) -> Result<f64> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|number| number.is_finite() && *number > 0.0)
                .ok_or_else(|| bad(name, format!("is {value}, expected a positive number"))),
        }
    }

    fn flag(&self, name: &str, default: bool) -> bool {
        self.0.get(name).and_then(Value::as_bool).unwrap_or(default)
    }

    /// The first token where the file lists several.
    fn eos(&self) -> Option<u32> {
        let value = self.0.get("eos_token_id")?;
        let first = value.as_array().and_then(|all| all.first()).unwrap_or(value);
        first.as_u64().and_then(|id| u32::try_from(id).ok())
    }

    fn gpt2(&self) -> Result<LmConfig> {
        let (hidden, heads) = (self.size("n_embd")?, self.size("n_head")?);
        let activation = match self.text("activation_function").unwrap_or("gelu_new") {
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "gelu" => Activation::Gelu,
            "relu" => Activation::Relu,
            other => return Err(bad("activation_function", format!("{other} is not supported"))),
        };
        if self.flag("scale_attn_by_inverse_layer_idx", false)
            || !self.flag("scale_attn_weights", true)
        {
            return Err(bad("scale_attn_weights", "in this form is not supported".into()));
        }
        Ok(LmConfig {
            num_hidden_layers: self.size("n_layer")?,
            max_position_embeddings: self.size("n_positions")?,
            intermediate_size: self.maybe_size("n_inner")?.unwrap_or(hidden.saturating_mul(4)),
            norm_eps: self.number("layer_norm_epsilon", 1e-5)?,
            activation,
            tie_word_embeddings: self.flag("tie_word_embeddings", true),
            initializer_range: self.number("initializer_range", 0.02)?,
            eos_token_id: self.eos(),
            ..LmConfig::gpt2(self.size("vocab_size")?, hidden, 0, heads, 0)
        })
    }

    fn llama(&self, architecture: Architecture) -> Result<LmConfig> {
        let (hidden, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        match self.text("hidden_act").unwrap_or("silu") {
            "silu" => {}
            other => return Err(bad("hidden_act", format!("{other} is not supported"))),
        }
        for flag in ["use_sliding_window", "attention_bias", "mlp_bias"] {
            if self.flag(flag, false) {
                return Err(bad(flag, "is true, which is not supported".into()));
            }
        }
        let rope = self.0.get("rope_parameters").or(self.0.get("rope_scaling"));
        let kind = rope.and_then(|rope| rope.get("rope_type").or(rope.get("type")));
        if let Some(kind) = kind.and_then(Value::as_str).filter(|kind| *kind != "default") {
            return Err(bad("rope_scaling", format!("of type {kind} is not supported")));
        }
        let in_rope = rope.and_then(|rope| rope.get("rope_theta")).and_then(Value::as_f64);
        Ok(LmConfig {
            architecture,
            intermediate_size: self.size("intermediate_size")?,
            num_hidden_layers: self.size("num_hidden_layers")?,
            num_key_value_heads: self.maybe_size("num_key_value_heads")?.unwrap_or(heads),
            head_dim: self.maybe_size("head_dim")?.unwrap_or(hidden / heads.max(1)),
            max_position_embeddings: self.size("max_position_embeddings")?,
            norm_eps: self.number("rms_norm_eps", 1e-6)?,
            rope_theta: self.number("rope_theta", in_rope.unwrap_or(10_000.0))?,
            tie_word_embeddings: self.flag("tie_word_embeddings", false),
            initializer_range: self.number("initializer_range", 0.02)?,
            eos_token_id: self.eos(),
            ..LmConfig::llama(self.size("vocab_size")?, hidden, 0, heads, 0)
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn configs_survive_their_json() {
        for config in [
            LmConfig::gpt2(50, 32, 2, 4, 16),
            LmConfig { num_key_value_heads: 2, ..LmConfig::llama(50, 32, 2, 4, 16) },
            LmConfig { architecture: Architecture::Qwen2, ..LmConfig::llama(50, 32, 2, 4, 16) },
        ] {
            assert_eq!(LmConfig::from_json(&config.to_json().to_string()).unwrap(), config);
        }
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        let refused = |change: &str, value: Value, part: &str| {
            let mut json = LmConfig::llama(50, 32, 2, 4, 16).to_json();
            json[change] = value;
            let message = LmConfig::from_json(&json.to_string()).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        refused("model_type", json!("mamba"), "expected gpt2, llama or qwen2");
        refused("rope_scaling", json!({"rope_type": "llama3"}), "llama3 is not supported");
        refused("num_hidden_layers", json!(1_000_000_000), "expected 1 to 512");
        refused("hidden_size", json!(-1), "whole number");
        refused("num_key_value_heads", json!(3), "does not divide");
        refused("hidden_act", json!("gelu"), "not supported");
        assert!(LmConfig::from_json("[]").is_err());
    }
}
