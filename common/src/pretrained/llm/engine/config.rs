//! Hyperparameters of a decoder-only model, from GGUF metadata or a Hugging Face config.json.

use crate::gguf::Gguf;
use crate::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// Families of models that the engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama and its relatives (SmolLM2): SwiGLU, rotary positions, grouped key/value heads.
    Llama,
    /// Qwen2 and Qwen2.5: Llama with biases on the q, k and v projections.
    Qwen2,
    /// Gemma 3: norms before and after each block and on q and k, GeGLU, scaled embeddings,
    /// five layers with a sliding window for each layer with global attention.
    Gemma3,
}

/// Attention of the layers that see only the latest tokens (Gemma 3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlidingWindow {
    /// Keys that a query sees, itself included.
    pub size: usize,
    /// Base of the rotary frequencies in these layers.
    pub rope_theta: f64,
    /// Every `period`-th layer (counted from 1) has global attention instead.
    pub period: usize,
}

/// Hyperparameters, by the names of config.json.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Tokens of the vocabulary, the rows of the embedding.
    pub vocab_size: usize,
    /// Tokens that a session can hold.
    pub max_position_embeddings: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads per layer.
    pub num_attention_heads: usize,
    /// Key/value heads per layer; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies (in Gemma 3: of the global layers).
    pub rope_theta: f64,
    /// The layers with a sliding window, where the family has them.
    pub sliding_window: Option<SlidingWindow>,
    /// Whether the output matrix is the embedding.
    pub tie_word_embeddings: bool,
}

impl ModelConfig {
    /// Width of all query heads together.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads together, which is that of the values.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The window of `layer` (counted from 0), `None` where attention is global.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let sliding = self.sliding_window.as_ref()?;
        (!(layer + 1).is_multiple_of(sliding.period)).then_some(sliding.size)
    }

    pub(super) fn has_qkv_bias(&self) -> bool {
        self.architecture == Architecture::Qwen2
    }

    /// What the embedding of a token is multiplied with.
    pub(super) fn embedding_scale(&self) -> f32 {
        if self.architecture == Architecture::Gemma3 {
            (self.hidden_size as f32).sqrt()
        } else {
            1.0
        }
    }

    /// Weights of the matrices, norms and biases left out.
    pub(super) fn matrix_weights(&self) -> usize {
        let attention = 2 * self.hidden_size * (self.query_size() + self.key_value_size());
        let layer = attention + 3 * self.hidden_size * self.intermediate_size;
        let vocabulary = self.vocab_size * self.hidden_size;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        self.num_hidden_layers * layer + tables * vocabulary
    }

    pub(super) fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let name = gguf.architecture()?;
        let invalid = |problem: String| {
            Error::asset(
                gguf.name().display().to_string(),
                problem,
                "use a GGUF file of a Llama, Qwen2 or Gemma 3 model",
            )
        };
        let architecture = match name {
            "llama" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            "gemma3" => Architecture::Gemma3,
            other => {
                return Err(invalid(format!(
                    "the architecture is {other}, expected llama, qwen2 or gemma3"
                )));
            }
        };
        let metadata = gguf.metadata();
        let key = |suffix: &str| format!("{name}.{suffix}");
        let size = |suffix: &str| metadata.usize(&key(suffix));
        let optional = |suffix: &str| metadata.find(&key(suffix));
        let embedding = gguf.tensor("token_embd.weight")?.shape();

        let heads = size("attention.head_count")?;
        let hidden_size = size("embedding_length")?;
        let head_dim = match optional("attention.key_length") {
            Some(length) => length.usize()?,
            None => hidden_size / heads.max(1),
        };
        for suffix in ["attention.value_length", "rope.dimension_count"] {
            if let Some(value) = optional(suffix).map(|value| value.usize()).transpose()?
                && value != head_dim
            {
                return Err(invalid(format!(
                    "{} is {value}, expected the head size {head_dim}",
                    key(suffix)
                )));
            }
        }
        if let Some(kind) = optional("rope.scaling.type").map(|value| value.str()).transpose()?
            && kind != "none"
        {
            return Err(invalid(format!("rope scaling of type {kind} is not supported")));
        }
        if gguf.find_tensor("rope_freqs.weight").is_some() {
            return Err(invalid("rope scaling by rope_freqs.weight is not supported".into()));
        }
        if size("expert_count").is_ok_and(|experts| experts > 0) {
            return Err(invalid("mixtures of experts are not supported".into()));
        }
        let theta =
            |suffix: &str, default: f64| optional(suffix).map_or(Ok(default), |value| value.f64());
        let gemma = architecture == Architecture::Gemma3;
        let sliding_window = match optional("attention.sliding_window") {
            Some(size) if gemma => Some(SlidingWindow {
                size: size.usize()?,
                rope_theta: theta("rope.freq_base_swa", 1e4)?,
                period: match optional("attention.sliding_window_pattern") {
                    Some(period) => period.usize()?,
                    None => 6,
                },
            }),
            _ => None,
        };
        let config = Self {
            architecture,
            vocab_size: embedding.first().copied().unwrap_or(0),
            max_position_embeddings: size("context_length")?,
            hidden_size,
            intermediate_size: size("feed_forward_length")?,
            num_hidden_layers: size("block_count")?,
            num_attention_heads: heads,
            num_key_value_heads: optional("attention.head_count_kv")
                .map_or(Ok(heads), |value| value.usize())?,
            head_dim,
            rms_norm_eps: metadata.f64(&key("attention.layer_norm_rms_epsilon"))? as f32,
            rope_theta: theta("rope.freq_base", if gemma { 1e6 } else { 1e4 })?,
            sliding_window,
            tie_word_embeddings: gguf.find_tensor("output.weight").is_none(),
        };
        config.check().map_err(invalid)?;
        Ok(config)
    }

    /// Reads `config.json` of a Hugging Face folder.
    pub(super) fn from_hf(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let invalid = |problem: String| {
            Error::asset(
                path.display().to_string(),
                problem,
                "use the config.json of a Llama or Qwen2 model",
            )
        };
        let raw: HfConfig = serde_json::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        let architecture = match raw.model_type.as_str() {
            "llama" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            other => {
                return Err(invalid(format!("model_type is {other}, expected llama or qwen2")));
            }
        };
        let rope = raw.rope_parameters.or(raw.rope_scaling).unwrap_or_default();
        if let Some(kind) = rope.rope_type.or(rope.kind)
            && kind != "default"
        {
            return Err(invalid(format!("rope scaling of type {kind} is not supported")));
        }
        if raw.use_sliding_window {
            return Err(invalid("use_sliding_window is not supported".into()));
        }
        if raw.hidden_act != "silu" {
            return Err(invalid(format!("hidden_act is {}, expected silu", raw.hidden_act)));
        }
        if raw.mlp_bias || (raw.attention_bias && architecture == Architecture::Llama) {
            return Err(invalid("biases in a Llama model are not supported".into()));
        }
        let config = Self {
            architecture,
            vocab_size: raw.vocab_size,
            max_position_embeddings: raw.max_position_embeddings,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim: raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads.max(1)),
            rms_norm_eps: raw.rms_norm_eps as f32,
            rope_theta: rope.rope_theta.or(raw.rope_theta).unwrap_or(1e4),
            sliding_window: None,
            tie_word_embeddings: raw.tie_word_embeddings,
        };
        config.check().map_err(invalid)?;
        Ok(config)
    }

    /// Bounds that the engine's arithmetic relies on.
    fn check(&self) -> Result<(), String> {
        let bounds = [
            ("vocabulary", self.vocab_size, 1 << 24),
            ("context", self.max_position_embeddings, 1 << 24),
            ("hidden size", self.hidden_size, 1 << 20),
            ("MLP size", self.intermediate_size, 1 << 24),
            ("number of layers", self.num_hidden_layers, 512),
            ("number of heads", self.num_attention_heads, 4096),
            ("number of key/value heads", self.num_key_value_heads, 4096),
            ("head size", self.head_dim, 4096),
        ];
        for (what, value, limit) in bounds {
            if value == 0 || value > limit {
                return Err(format!("the {what} is {value}, expected 1 to {limit}"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(format!(
                "{} heads do not divide into {} key/value heads",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if self.head_dim % 2 == 1 {
            return Err(format!(
                "the head size {} is odd, rotary pairs need it even",
                self.head_dim
            ));
        }
        let positive = |value: f64| value > 0.0 && value.is_finite();
        if !positive(f64::from(self.rms_norm_eps)) || !positive(self.rope_theta) {
            return Err(format!(
                "rms_norm_eps {} and rope_theta {} must be positive",
                self.rms_norm_eps, self.rope_theta
            ));
        }
        if let Some(window) = &self.sliding_window
            && (window.size == 0 || window.period == 0 || !positive(window.rope_theta))
        {
            return Err(format!("{window:?} must hold positive numbers"));
        }
        Ok(())
    }
}

/// The keys of config.json that matter here; others are for training or other code.
#[derive(Deserialize)]
struct HfConfig {
    model_type: String,
    vocab_size: usize,
    max_position_embeddings: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<HfRope>,
    rope_parameters: Option<HfRope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "silu")]
    hidden_act: String,
}

/// Rotary settings: `rope_parameters` in new files, `rope_scaling` in old ones.
#[derive(Deserialize, Default)]
struct HfRope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

fn silu() -> String {
    "silu".into()
}
