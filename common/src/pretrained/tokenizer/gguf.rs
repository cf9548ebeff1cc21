//! Tokenizers from GGUF metadata.

use super::spm::{SPACE, Spm};
use super::{Model, Splitter, Token, Tokenizer, byte_level, invalid};
use crate::Result;
use crate::gguf::{Gguf, Metadata};
use std::collections::HashMap;
use std::path::Path;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

/// Qwen2's own pattern, from its `tokenizer.json`.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    /// Unknown and control tokens.
    Special,
    UserDefined,
    Unused,
    Byte,
}

impl Gguf {
    /// The tokenizer of the model, from the file's metadata: byte-level BPE with the `smollm` or
    /// `qwen2` pre-tokenizer, or SentencePiece with scores. Another kind is an
    /// [`crate::Error::Asset`] that names it.
    ///
    /// Qwen2 text is put into Unicode normal form C first, as in the model's `tokenizer.json`
    /// (llama.cpp leaves it as it is).
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let metadata = self.metadata();
        let texts = metadata.strings("tokenizer.ggml.tokens")?;
        let kinds = kinds(metadata, &texts)?;
        let name = self.name();
        let model = metadata.str("tokenizer.ggml.model")?;
        let splitter = splitter(&texts, &kinds).map_err(|problem| invalid(name, problem))?;
        let (model, tokens) = match model {
            "gpt2" => byte_level_bpe(metadata, &texts, &kinds, splitter, name)?,
            "llama" => sentence_piece(metadata, &texts, &kinds, splitter, name)?,
            other => {
                let problem =
                    format!("tokenizer.ggml.model is {other}, only gpt2 and llama are supported");
                return Err(invalid(name, problem));
            }
        };
        let mut ids = HashMap::with_capacity(texts.len());
        for (id, text) in (0..).zip(&texts) {
            ids.entry((*text).to_owned()).or_insert(id);
        }
        // SentencePiece models begin with BOS unless the file says otherwise.
        let add_bos = match metadata.find("tokenizer.ggml.add_bos_token") {
            Some(value) => value.bool()?,
            None => matches!(model, Model::Spm { .. }),
        };
        Ok(Tokenizer {
            model,
            tokens,
            ids,
            bos: self.bos_id(),
            eos: self.eos_id(),
            add_bos,
            name: name.to_path_buf(),
        })
    }
}

fn kinds(metadata: Metadata<'_>, texts: &[&str]) -> Result<Vec<Kind>> {
    let Some(types) = metadata.find("tokenizer.ggml.token_type") else {
        return Ok(vec![Kind::Normal; texts.len()]);
    };
    // Some converters write role tokens as user-defined, which would let plain text reach them.
    let steers = |text: &str| {
        text.starts_with("<|") && text.ends_with("|>")
            || matches!(text, "<start_of_turn>" | "<end_of_turn>")
    };
    let kind = |(code, &text): (i64, &&str)| match code {
        2 | 3 => Kind::Special,
        4 if steers(text) => Kind::Special,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte,
        _ => Kind::Normal,
    };
    Ok(types.i64s()?.into_iter().zip(texts).map(kind).collect())
}

fn splitter(texts: &[&str], kinds: &[Kind]) -> Result<Splitter, String> {
    let of = |wanted: Kind| {
        let ids = (0..).zip(texts.iter().zip(kinds));
        ids.filter(|(_, (text, kind))| **kind == wanted && !text.is_empty())
            .map(|(id, (text, _))| ((*text).to_owned(), id))
            .collect()
    };
    Splitter::new(of(Kind::Special), of(Kind::UserDefined))
}

fn byte_level_bpe(
    metadata: Metadata<'_>,
    texts: &[&str],
    kinds: &[Kind],
    splitter: Splitter,
    name: &Path,
) -> Result<(Model, Vec<Token>)> {
    let mut vocabulary = Vocab::with_capacity(texts.len());
    for (id, text) in (0..).zip(texts) {
        vocabulary.entry((*text).to_owned()).or_insert(id);
    }
    let merges = merges(&metadata.strings("tokenizer.ggml.merges")?, &vocabulary)
        .map_err(|problem| invalid(name, problem))?;
    let bpe = BPE::builder().vocab_and_merges(vocabulary, merges).build()?;
    let mut bpe = tokenizers::Tokenizer::new(bpe);
    let byte_level = |use_regex| ByteLevel::new(false, false, use_regex).into();
    let steps: Vec<PreTokenizerWrapper> = match metadata.str("tokenizer.ggml.pre")? {
        "smollm" => vec![Digits::new(true).into(), byte_level(true)],
        "qwen2" => {
            bpe.with_normalizer(Some(NFC))?;
            let pattern = SplitPattern::Regex(QWEN2.into());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
            vec![split.into(), byte_level(false)]
        }
        other => {
            let problem =
                format!("tokenizer.ggml.pre is {other}, only smollm and qwen2 are supported");
            return Err(invalid(name, problem));
        }
    };
    bpe.with_pre_tokenizer(Some(Sequence::new(steps)));

    let decoder = byte_level::Decoder::new();
    let token = |(text, kind): (&&str, &Kind)| match kind {
        Kind::Normal | Kind::Byte => Token { bytes: decoder.decode(text), special: false },
        Kind::UserDefined => Token { bytes: text.as_bytes().to_vec(), special: false },
        Kind::Special | Kind::Unused => Token { bytes: text.as_bytes().to_vec(), special: true },
    };
    let tokens = texts.iter().zip(kinds).map(token).collect();
    Ok((Model::ByteLevel { splitter, bpe: Box::new(bpe) }, tokens))
}

/// `left right` pairs whose parts and whole are in the vocabulary: `tokenizers` panics on a whole
/// that is longer than its longest token.
fn merges(pairs: &[&str], vocabulary: &Vocab) -> Result<Merges, String> {
    let check = |pair: &&str| {
        let (left, right) = pair.split_once(' ')?;
        let known = vocabulary.contains_key(left)
            && vocabulary.contains_key(right)
            && vocabulary.contains_key(&format!("{left}{right}"));
        known.then(|| (left.to_owned(), right.to_owned()))
    };
    let merge = |pair| {
        check(pair).ok_or_else(|| {
            format!("the merge {pair:?} is not two tokens of the vocabulary whose concatenation is a third")
        })
    };
    pairs.iter().map(merge).collect()
}

fn sentence_piece(
    metadata: Metadata<'_>,
    texts: &[&str],
    kinds: &[Kind],
    splitter: Splitter,
    name: &Path,
) -> Result<(Model, Vec<Token>)> {
    let scores = metadata.get("tokenizer.ggml.scores")?.f64s()?;
    let unknown = metadata.find("tokenizer.ggml.unknown_token_id");
    let unknown = unknown.map(|value| value.u32()).transpose()?;
    let mut pieces = HashMap::with_capacity(texts.len());
    let mut tokens = Vec::with_capacity(texts.len());
    let mut bytes = [unknown; 256];
    for ((id, text), (kind, score)) in (0..).zip(texts).zip(kinds.iter().zip(scores)) {
        let byte = byte_of(text).filter(|_| *kind == Kind::Byte);
        if let Some(byte) = byte {
            bytes[usize::from(byte)] = Some(id);
        } else if matches!(kind, Kind::Normal | Kind::UserDefined) {
            pieces.entry((*text).to_owned()).or_insert((score as f32, id));
        }
        tokens.push(match (byte, kind) {
            (Some(byte), _) => Token { bytes: vec![byte], special: false },
            (None, Kind::Special | Kind::Unused) => {
                Token { bytes: text.as_bytes().to_vec(), special: true }
            }
            (None, _) => Token { bytes: text.replace(SPACE, " ").into_bytes(), special: false },
        });
    }
    let mut ids = [0; 256];
    for (id, byte) in ids.iter_mut().zip(bytes) {
        *id = byte.ok_or_else(|| {
            invalid(name, "its vocabulary has neither a token for every byte nor an unknown token")
        })?;
    }
    let space_prefix = match metadata.find("tokenizer.ggml.add_space_prefix") {
        Some(value) => value.bool()?,
        None => true,
    };
    Ok((Model::Spm { splitter, spm: Box::new(Spm::new(pieces, ids, space_prefix)) }, tokens))
}

/// The byte that a token such as `<0x0A>` stands for.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}
