//! Bounds on what the metadata means: hyperparameters and vocabulary.

use super::{Gguf, Value};
use crate::Result;

/// Counts and lengths of `general.architecture`; absent keys are left to whoever needs them.
pub(super) fn hyperparameters(gguf: &Gguf) -> Result<()> {
    let Some(architecture) = gguf.metadata().find("general.architecture") else {
        return Ok(());
    };
    let architecture = architecture.str()?;
    let find = |key: &str| gguf.metadata().find(&format!("{architecture}.{key}"));
    let bounded = |key: &str, limit: u64| -> Result<Option<u64>> {
        let Some(value) = find(key) else { return Ok(None) };
        let count = value.u64()?;
        if count == 0 || count > limit {
            let problem = format!("{architecture}.{key} is {count}, expected 1 to {limit}");
            return Err(gguf.invalid(problem));
        }
        Ok(Some(count))
    };
    bounded("block_count", 512)?;
    bounded("context_length", 1 << 24)?;
    bounded("feed_forward_length", 1 << 24)?;
    bounded("attention.sliding_window", 1 << 24)?;
    bounded("vocab_size", 1 << 24)?;
    let width = bounded("embedding_length", 1 << 20)?;
    let key_length = bounded("attention.key_length", 1 << 16)?;
    bounded("attention.value_length", 1 << 16)?;
    let rope = bounded("rope.dimension_count", 1 << 16)?;

    let heads = bounded("attention.head_count", 4096)?;
    let kv_heads = bounded("attention.head_count_kv", 4096)?;
    if let (Some(heads), Some(kv_heads)) = (heads, kv_heads)
        && !heads.is_multiple_of(kv_heads)
    {
        return Err(gguf.invalid(format!(
            "{heads} attention heads do not divide into {kv_heads} key-value heads"
        )));
    }
    let head = match (key_length, width, heads) {
        (Some(length), ..) => Some(length),
        (None, Some(width), Some(heads)) if width.is_multiple_of(heads) => Some(width / heads),
        (None, Some(width), Some(heads)) => {
            return Err(gguf.invalid(format!(
                "the embedding length {width} does not divide into {heads} heads"
            )));
        }
        _ => None,
    };
    if let (Some(head), Some(rope)) = (head, rope)
        && (rope > head || rope % 2 == 1)
    {
        return Err(
            gguf.invalid(format!("{rope} rotary dimensions do not fit heads of {head} dimensions"))
        );
    }
    for key in ["rope.freq_base", "attention.layer_norm_rms_epsilon"] {
        if let Some(value) = find(key).map(|value: Value<'_>| value.f64()).transpose()?
            && value <= 0.0
        {
            let problem = format!("{architecture}.{key} is {value}, expected more than zero");
            return Err(gguf.invalid(problem));
        }
    }
    Ok(())
}

/// Token arrays of one length, as many as the embedding has rows, and special ids among them.
pub(super) fn vocabulary(gguf: &Gguf) -> Result<()> {
    let metadata = gguf.metadata();
    let embedding = gguf.find_tensor("token_embd.weight").map(|tensor| tensor.shape());
    if let Some(shape) = embedding
        && shape.len() != 2
    {
        return Err(gguf.invalid(format!("token_embd.weight has shape {shape:?}, not a matrix")));
    }
    let rows = embedding.map(|shape| shape[0]);
    let mut tokens = None;
    for key in ["tokens", "scores", "token_type"] {
        let Some(value) = metadata.find(&format!("tokenizer.ggml.{key}")) else { continue };
        let Some(count) = value.array_len() else {
            return Err(gguf.invalid(format!("tokenizer.ggml.{key} is not an array")));
        };
        let expected = *tokens.get_or_insert(count);
        if count != expected {
            return Err(gguf.invalid(format!(
                "tokenizer.ggml.{key} has {count} entries, tokenizer.ggml.tokens {expected}"
            )));
        }
    }
    if let (Some(tokens), Some(rows)) = (tokens, rows)
        && tokens != rows
    {
        return Err(gguf.invalid(format!(
            "the vocabulary has {tokens} tokens but token_embd.weight has {rows} rows"
        )));
    }
    let Some(size) = tokens.or(rows) else { return Ok(()) };
    for name in ["bos", "eos", "eot", "unknown", "padding", "seperator"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        if let Some(id) = metadata.find(&key).map(|value| value.usize()).transpose()?
            && id >= size
        {
            return Err(gguf.invalid(format!("{key} is {id} but the vocabulary has {size} tokens")));
        }
    }
    Ok(())
}
