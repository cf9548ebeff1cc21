//! The tables of token vectors: rows erased, or made for another vocabulary.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use common::lm::{Lm, LmConfig};
use common::{Error, Result};

/// Whether a tensor has a row per token.
fn is_table(name: &str) -> bool {
    ["wte.weight", "embed_tokens.weight", "lm_head.weight"].iter().any(|end| name.ends_with(end))
}

/// The model with the rows of `tokens` set to zero.
///
/// # Errors
/// Those of the tensors.
pub fn without_tokens(lm: &Lm, tokens: &[u32]) -> Result<Lm> {
    let mut tensors = lm.parameters().tensors();
    for (_, table) in tensors.iter_mut().filter(|(name, _)| is_table(name)) {
        let (_, width) = table.dims2()?;
        let mut values = table.flatten_all()?.to_vec1::<f32>()?;
        for &token in tokens {
            values[token as usize * width..][..width].fill(0.0);
        }
        *table = Tensor::from_vec(values, table.shape(), table.device())?;
    }
    Lm::from_tensors(lm.config(), tensors)
}

/// A model for another vocabulary on the layers of `lm`: the row of each new token is the mean of the
/// rows of `pieces`, the old tokens that its text is made of.
///
/// # Errors
/// [`Error::Bug`] on a token without pieces or with one that `lm` does not have; those of the tensors.
pub fn with_vocabulary(lm: &Lm, pieces: &[Vec<u32>]) -> Result<Lm> {
    let old = lm.config().vocab_size;
    if pieces.iter().any(|ids| ids.is_empty() || ids.iter().any(|&id| id as usize >= old)) {
        return Err(Error::Bug(format!("a token without pieces among the model's {old} tokens")));
    }
    let config = LmConfig { vocab_size: pieces.len(), eos_token_id: None, ..lm.config().clone() };
    let mut tensors: BTreeMap<String, Tensor> = lm.parameters().tensors();
    for (_, table) in tensors.iter_mut().filter(|(name, _)| is_table(name)) {
        let rows = pieces
            .iter()
            .map(|ids| {
                let ids = Tensor::new(ids.as_slice(), &Device::Cpu)?;
                Ok(table.index_select(&ids, 0)?.mean(0)?)
            })
            .collect::<Result<Vec<_>>>()?;
        *table = Tensor::stack(&rows, 0)?;
    }
    Lm::from_tensors(&config, tensors)
}
