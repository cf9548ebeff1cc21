//! The weights of a GGUF file as a model that trains.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::config::{Architecture, ModelConfig};
use super::load::{Source, expected, hf_name, paired_row};
use crate::gguf::Gguf;
use crate::lm::{self, Lm, LmConfig};
use crate::{Error, Result};

/// The model of a GGUF file (Llama or Qwen2), its weights dequantised to f32, as a trainable
/// [`Lm`] with the tensor names of transformers: 4 bytes a weight, before gradients and optimiser.
///
/// # Errors
/// [`Error::Asset`] on another architecture, and on missing or misshapen tensors, with their names.
pub fn trainable(gguf: &Gguf) -> Result<Lm> {
    let config = ModelConfig::from_gguf(gguf)?;
    let architecture = match config.architecture {
        Architecture::Llama => lm::Architecture::Llama,
        Architecture::Qwen2 => lm::Architecture::Qwen2,
        Architecture::Gemma3 => {
            return Err(Error::asset(
                gguf.name().display().to_string(),
                "is a Gemma 3 model, which can be prompted but not trained",
                "use a Llama or Qwen2 model",
            ));
        }
    };
    let source = Source::Gguf(gguf);
    let shapes = expected(&config);
    source.check(&shapes)?;
    let mut tensors = BTreeMap::new();
    for (name, shape) in &shapes {
        let mut values = source.vector(name)?;
        let rotary = ["attn_q.weight", "attn_k.weight"].iter().any(|part| name.ends_with(part));
        if rotary && architecture == lm::Architecture::Llama {
            values = halves(&values, shape[1], config.head_dim);
        }
        let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?;
        tensors.insert(hf_name(name), tensor);
    }
    let sizes = LmConfig {
        architecture,
        intermediate_size: config.intermediate_size,
        num_key_value_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        norm_eps: f64::from(config.rms_norm_eps),
        rope_theta: config.rope_theta,
        tie_word_embeddings: config.tie_word_embeddings,
        eos_token_id: gguf.eos_id(),
        ..LmConfig::llama(
            config.vocab_size,
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.max_position_embeddings,
        )
    };
    Lm::from_tensors(&sizes, tensors)
}

/// Rows of `cols` values, put from neighbouring pairs into halves, head by head.
pub(super) fn halves(values: &[f32], cols: usize, head_dim: usize) -> Vec<f32> {
    let mut halves = Vec::with_capacity(values.len());
    for row in 0..values.len() / cols {
        let from = paired_row(row, head_dim) * cols;
        halves.extend_from_slice(&values[from..from + cols]);
    }
    halves
}
