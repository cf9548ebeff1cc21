//! Tokenizers from `tokenizer.json`.

use super::gguf::byte_of;
use super::spm::SPACE;
use super::{Model, Token, Tokenizer, byte_level, invalid};
use crate::Result;
use serde_json::Value;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

const MAX_BYTES: usize = 64 << 20;
/// Ids above the number of tokens by more than this would make the table of tokens mostly holes.
const MAX_HOLES: usize = 65_536;

/// Reads a `tokenizer.json`; `name` stands for it in error messages. Its truncation and padding
/// are dropped, as they belong to one use and a crafted length would exhaust memory.
///
/// A malformed file is an [`crate::Error::Asset`]. `tokenizers` panics on some of them; such a
/// panic is caught here (its message still goes to the panic hook).
pub fn read_json(bytes: &[u8], name: &Path) -> Result<tokenizers::Tokenizer> {
    if bytes.len() > MAX_BYTES {
        let problem =
            format!("it has {} MB, at most {} are read", bytes.len() >> 20, MAX_BYTES >> 20);
        return Err(invalid(name, problem));
    }
    let mut json: Value = serde_json::from_slice(bytes)
        .map_err(|error| invalid(name, format!("it is not JSON: {error}")))?;
    let Some(fields) = json.as_object_mut() else {
        return Err(invalid(name, "it is not a JSON object"));
    };
    fields.insert("truncation".into(), Value::Null);
    fields.insert("padding".into(), Value::Null);
    let model = fields.get("model");
    let model_field = |key: &str| model.and_then(|model| model.get(key)).and_then(Value::as_str);
    // `tokenizers` cuts the prefix off without looking for a character boundary.
    if model_field("type") != Some("WordPiece")
        && model_field("continuing_subword_prefix").is_some_and(|prefix| !prefix.is_empty())
    {
        return Err(invalid(
            name,
            "its model has a continuing_subword_prefix, which only WordPiece models may have",
        ));
    }
    guard(name, || tokenizers::Tokenizer::from_bytes(json.to_string()))
}

/// Runs `tokenizers` code on a file that may be malformed: its errors and panics become
/// [`crate::Error::Asset`].
pub(super) fn guard<T>(name: &Path, run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(invalid(name, error.to_string())),
        Err(_) => {
            Err(invalid(name, "it is malformed in a way that the tokenizers library can't report"))
        }
    }
}

/// A [`Tokenizer`] from a `tokenizer.json`.
pub(super) fn tokenizer(bytes: &[u8], name: &Path) -> Result<Tokenizer> {
    let parse = read_json(bytes, name)?;
    let mut as_text = parse.clone();
    as_text.set_encode_special_tokens(true);
    let ids: HashMap<String, u32> = parse.get_vocab(true).into_iter().collect();
    let size = ids.values().max().map_or(0, |&id| id as usize + 1);
    if size > ids.len() + MAX_HOLES {
        let problem =
            format!("its highest token id is {} but it has {} tokens", size - 1, ids.len());
        return Err(invalid(name, problem));
    }
    let byte_level = parse.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok());
    let byte_level = byte_level.is_some_and(|decoder| decoder.contains("\"ByteLevel\""));
    let decoder = byte_level::Decoder::new();
    let added = parse.get_added_tokens_decoder();
    // An id without a token adds nothing to a text.
    let mut tokens = vec![Token { bytes: Vec::new(), special: true }; size];
    for (text, &id) in &ids {
        tokens[id as usize] = match (added.get(&id), byte_of(text)) {
            (Some(token), _) => Token { bytes: text.as_bytes().to_vec(), special: token.special },
            (None, _) if byte_level => Token { bytes: decoder.decode(text), special: false },
            (None, Some(byte)) => Token { bytes: vec![byte], special: false },
            (None, None) => Token { bytes: text.replace(SPACE, " ").into_bytes(), special: false },
        };
    }
    Ok(Tokenizer {
        model: Model::Json { parse: Box::new(parse), as_text: Box::new(as_text) },
        tokens,
        ids,
        bos: None,
        eos: None,
        add_bos: false,
        name: name.to_path_buf(),
    })
}
