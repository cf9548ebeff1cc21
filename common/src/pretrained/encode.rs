//! Text encoders: BERT, and frozen ones (MiniLM or any BERT folder) that turn texts into vectors,
//! batched by length and cached on disk.
//!
//! ```no_run
//! use common::{assets::Assets, encode::TextEncoder};
//!
//! # fn main() -> common::Result<()> {
//! let encoder = TextEncoder::minilm(&Assets::from_env())?;
//! let vectors = encoder.encode(&["dress", "floral dress"])?; // (2, 384), unit rows
//! let cosine = vectors.row(0).dot(&vectors.row(1));
//! # Ok(())
//! # }
//! ```

mod bert;
mod cache;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use candle_core::{Device, Tensor};
use ndarray::Array2;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tokenizers::{Tokenizer, TruncationParams};

use crate::assets::Assets;
use crate::tokenizer;
use crate::weights::Safetensors;
use crate::{Error, Result};
use cache::{Cache, Key};

pub use bert::{Bert, BertConfig};

/// Tokens per batch, padding included: enough for large matrix products, and small enough that the
/// activations of one batch stay near the processor.
const BATCH_TOKENS: usize = 2048;
/// MiniLM was trained on at most this many tokens.
const MINILM_TOKENS: usize = 256;
/// Part of what cached vectors are found by: another number for another order of sums.
const ARITHMETIC: u8 = 2;

/// A BERT that turns texts into unit vectors: mean of the last hidden states over the text's
/// tokens, divided by its L2 norm (Reimers & Gurevych 2019, Sentence-BERT, mean pooling).
pub struct TextEncoder {
    model: Bert,
    tokenizer: Tokenizer,
    width: usize,
    /// Hash of weights, tokenizer and length limit: what a vector depends on beside its text.
    fingerprint: [u8; 32],
    cache: Option<Mutex<Cache>>,
}

impl std::fmt::Debug for TextEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextEncoder").field("width", &self.width).finish_non_exhaustive()
    }
}

impl TextEncoder {
    /// all-MiniLM-L6-v2: 384 dimensions, texts cut to 256 tokens.
    ///
    /// # Errors
    /// As [`Assets::folder`] for `all-minilm-l6-v2`.
    pub fn minilm(assets: &Assets) -> Result<Self> {
        Self::from_folder(&assets.folder("all-minilm-l6-v2")?, MINILM_TOKENS)
    }

    /// A BERT folder in Hugging Face's layout: `config.json`, `tokenizer.json`, `model.safetensors`.
    /// Texts are cut to `max_tokens`, or to the model's positions when those are fewer.
    ///
    /// # Errors
    /// [`Error::Io`] when a file can't be read; [`Error::Asset`] when one does not hold what it
    /// should, or the three do not belong together.
    pub fn from_folder(folder: &Path, max_tokens: usize) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(Error::io(&path))
        };
        let invalid = |name: &str, problem: String| {
            Error::asset(
                folder.join(name).display().to_string(),
                problem,
                "use a BERT folder as sentence-transformers saves it",
            )
        };
        let (config, tokenizer, weights) =
            (read("config.json")?, read("tokenizer.json")?, read("model.safetensors")?);
        let config = BertConfig::from_json(&config).map_err(|error| match error {
            Error::Asset { problem, .. } => invalid("config.json", problem),
            other => other,
        })?;
        let max_tokens = max_tokens.min(config.max_position_embeddings).max(2);

        let mut hasher = Sha256::new();
        hasher.update(&weights);
        hasher.update(&tokenizer);
        hasher.update(max_tokens.to_le_bytes());
        hasher.update([ARITHMETIC]);
        let fingerprint = hasher.finalize().into();

        let parsed = tokenizer::read_json(&tokenizer, &folder.join("tokenizer.json"))?;
        let tokenizer = prepare(parsed, max_tokens)
            .map_err(|error| invalid("tokenizer.json", error.to_string()))?;
        let tokens = tokenizer.get_vocab_size(true);
        if tokens > config.vocab_size {
            return Err(invalid(
                "tokenizer.json",
                format!("it has {tokens} tokens, the model only {}", config.vocab_size),
            ));
        }
        let weights = Safetensors::from_bytes(weights, &folder.join("model.safetensors"))?;
        let model = Bert::frozen(&config, &weights)
            .map_err(|error| invalid("model.safetensors", error.to_string()))?;
        Ok(Self { model, tokenizer, width: config.hidden_size, fingerprint, cache: None })
    }

    /// Keeps vectors in `folder` by content hash (weights, tokenizer, length limit, text). Several
    /// processes may share the folder; a damaged file in it is ignored.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder can't be made or listed.
    pub fn with_cache(mut self, folder: &Path) -> Result<Self> {
        self.cache = Some(Mutex::new(Cache::open(folder, self.width)?));
        Ok(self)
    }

    /// Length of a vector.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Encodes `texts` to (texts, width) with unit rows. Equal texts are encoded once. A text's
    /// vector depends on its neighbours in a batch by rounding only (≤ 1e-6).
    ///
    /// # Errors
    /// [`Error::Asset`] when the tokenizer refuses a text; [`Error::Io`] when the cache can't be
    /// written.
    pub fn encode(&self, texts: &[impl AsRef<str> + Sync]) -> Result<Array2<f32>> {
        // Positions of each distinct text, in order of first appearance.
        let mut distinct: Vec<&str> = Vec::new();
        let mut index: HashMap<&str, usize> = HashMap::new();
        let rows: Vec<usize> = texts
            .iter()
            .map(|text| {
                *index.entry(text.as_ref()).or_insert_with(|| {
                    distinct.push(text.as_ref());
                    distinct.len() - 1
                })
            })
            .collect();

        let vectors = match &self.cache {
            None => self.encode_batches(&distinct)?,
            Some(cache) => self.encode_cached(&distinct, cache)?,
        };
        let mut out = Array2::zeros((texts.len(), self.width));
        for (mut row, text) in out.rows_mut().into_iter().zip(rows) {
            row.iter_mut().zip(&vectors[text]).for_each(|(out, value)| *out = *value);
        }
        Ok(out)
    }

    fn encode_cached(&self, texts: &[&str], cache: &Mutex<Cache>) -> Result<Vec<Vec<f32>>> {
        let keys: Vec<Key> = texts.iter().map(|text| self.key(text)).collect();
        let lock = || cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut vectors: Vec<Option<Vec<f32>>> = {
            let cache = lock();
            keys.iter().map(|key| cache.get(key).map(<[f32]>::to_vec)).collect()
        };
        let absent: Vec<usize> = (0..texts.len()).filter(|text| vectors[*text].is_none()).collect();
        if !absent.is_empty() {
            let new_texts: Vec<&str> = absent.iter().map(|text| texts[*text]).collect();
            let new = self.encode_batches(&new_texts)?;
            lock().add(absent.iter().map(|text| keys[*text]).zip(new.iter().cloned()).collect())?;
            for (text, vector) in absent.into_iter().zip(new) {
                vectors[text] = Some(vector);
            }
        }
        Ok(vectors.into_iter().flatten().collect())
    }

    fn key(&self, text: &str) -> Key {
        let mut hasher = Sha256::new();
        hasher.update(self.fingerprint);
        hasher.update(text.as_bytes());
        hasher.finalize().into()
    }

    /// Encodes in batches of similar length, so that little is spent on padding.
    fn encode_batches(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let tokens: Vec<Vec<u32>> = texts
            .par_iter()
            .map(|text| Ok(self.tokenizer.encode(*text, true)?.get_ids().to_vec()))
            .collect::<Result<_>>()?;
        let batches = pack(&tokens.iter().map(Vec::len).collect::<Vec<_>>(), BATCH_TOKENS);
        let encoded: Vec<Vec<Vec<f32>>> = batches
            .par_iter()
            .map(|batch| {
                let rows: Vec<&[u32]> = batch.iter().map(|text| tokens[*text].as_slice()).collect();
                self.forward(&rows)
            })
            .collect::<Result<_>>()?;
        let mut vectors = vec![Vec::new(); texts.len()];
        for (text, vector) in batches.iter().flatten().zip(encoded.into_iter().flatten()) {
            vectors[*text] = vector;
        }
        Ok(vectors)
    }

    fn forward(&self, rows: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for row in rows {
            ids.extend_from_slice(row);
            ids.resize(ids.len() + longest - row.len(), 0);
            mask.extend(std::iter::repeat_n(1_f32, row.len()));
            mask.resize(ids.len(), 0.0);
        }
        let shape = (rows.len(), longest);
        let ids = Tensor::from_vec(ids, shape, &Device::Cpu)?;
        let mask = Tensor::from_vec(mask, shape, &Device::Cpu)?;
        let types = ids.zeros_like()?;
        Ok(embed(&self.model, &ids, &types, &mask)?.to_vec2()?)
    }
}

/// Unit-length mean of the last hidden states under `mask` (0 or 1): (batch, tokens) to
/// (batch, width).
fn embed(model: &Bert, ids: &Tensor, types: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let hidden = model.forward(ids, types, mask)?; // (batch, tokens, width)
    let sum = mask.unsqueeze(1)?.matmul(&hidden)?.squeeze(1)?; // (batch, width)
    let mean = sum.broadcast_div(&mask.sum_keepdim(1)?)?;
    let norm = mean.sqr()?.sum_keepdim(1)?.sqrt()?.clamp(1e-12, f32::MAX)?;
    Ok(mean.broadcast_div(&norm)?)
}

/// Sets truncation; padding is left to the batches.
fn prepare(mut tokenizer: Tokenizer, max_tokens: usize) -> tokenizers::Result<Tokenizer> {
    let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(truncation))?;
    // "[SEP]" in a text is five characters, not a token with a meaning.
    tokenizer.set_encode_special_tokens(true);
    Ok(tokenizer)
}

/// Groups texts of the given lengths, longest first, into batches of at most `budget` tokens with
/// padding (a longer text stands alone).
fn pack(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&text| (std::cmp::Reverse(lengths[text]), text));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for text in order {
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * lengths[batch[0]] <= budget => batch.push(text),
            _ => batches.push(vec![text]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::testing::{assert_close, golden, golden_tensors};

    #[test]
    fn bert_equals_transformers() {
        let folder = golden(env!("CARGO_MANIFEST_DIR"), "bert_tiny");
        let expected = golden_tensors(&folder.join("expected.safetensors"));
        let config = std::fs::read(folder.join("config.json")).unwrap();
        let weights = Safetensors::open(&folder.join("model.safetensors")).unwrap();
        let model = Bert::frozen(&BertConfig::from_json(&config).unwrap(), &weights).unwrap();

        let cast = |name: &str, dtype| expected[name].to_dtype(dtype).unwrap();
        let (ids, types) = (cast("input_ids", DType::U32), cast("token_type_ids", DType::U32));
        let mask = cast("attention_mask", DType::F32);
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let found = embed(&model, &ids, &types, &mask).unwrap();
        assert_close(&flat(&found), &flat(&expected["embedding"]), 1e-5, 0.0);

        // Hidden states count where the mask is 1; padding is free to differ.
        let hidden = model.forward(&ids, &types, &mask).unwrap();
        let masked =
            |hidden: &Tensor| flat(&hidden.broadcast_mul(&mask.unsqueeze(2).unwrap()).unwrap());
        assert_close(&masked(&hidden), &masked(&expected["last_hidden_state"]), 1e-4, 0.0);
    }

    #[test]
    fn batches_hold_every_text_once_within_the_budget() {
        let lengths = [3, 300, 5, 5, 1, 8, 8, 2];
        let batches = pack(&lengths, 16);
        let mut all: Vec<_> = batches.iter().flatten().copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..8).collect::<Vec<_>>());
        for batch in &batches {
            let longest = batch.iter().map(|text| lengths[*text]).max().unwrap();
            assert!(batch.len() == 1 || batch.len() * longest <= 16, "{batch:?}");
        }
        assert!(pack(&[], 16).is_empty());
    }
}
