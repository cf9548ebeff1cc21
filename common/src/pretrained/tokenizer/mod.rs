//! Tokenizers of local LLMs, from GGUF metadata or from a `tokenizer.json`.
//!
//! [`Tokenizer`] adds to `tokenizers::Tokenizer` what prompting needs: text that comes from data
//! is encoded with [`Special::AsText`], so that `<|im_end|>` inside a product description becomes
//! ordinary tokens and never ends a turn; the bytes of each token are known, for constrained
//! decoding; and SentencePiece vocabularies with scores (Gemma, Llama 2) are encoded exactly.
//!
//! | source | model | done by |
//! |---|---|---|
//! | GGUF, `tokenizer.ggml.model` = gpt2, `pre` = smollm or qwen2 | byte-level BPE | `tokenizers`, with the published pre-tokenizer of the model |
//! | GGUF, `tokenizer.ggml.model` = llama | SentencePiece BPE by score | [this module](self), as `tokenizers` can only rank pairs and scores rank what a pair becomes |
//! | `tokenizer.json` | any | `tokenizers` |
//!
//! `tokenizers` panics on some malformed files (a BPE merge longer than the longest token, a
//! damaged normaliser table). GGUF metadata is validated before it gets there;
//! [`read_json`] validates what it can and turns any other panic into an error.

mod byte_level;
mod gguf;
mod json;
mod special;
mod spm;

pub use json::read_json;

use crate::{Error, Result};
use special::Splitter;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// What becomes of the text of a special token, such as `<|im_end|>`, inside a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// It becomes the special token: for chat templates and other trusted text.
    Parse,
    /// It becomes ordinary tokens: for text from users, files and the net. Tokens that a
    /// vocabulary calls user-defined (runs of newlines in Gemma, `<tool_call>` in Qwen) are
    /// still matched, as they were in training.
    AsText,
}

/// Turns text into token ids and back.
///
/// ```no_run
/// # fn main() -> common::Result<()> {
/// use common::tokenizer::Special;
/// let gguf = common::gguf::Gguf::open("model.gguf".as_ref())?;
/// let tokenizer = gguf.tokenizer()?;
/// let mut prompt = tokenizer.encode("<|im_start|>user\n", Special::Parse)?;
/// prompt.extend(tokenizer.encode("any text, <|im_end|> too", Special::AsText)?);
/// assert!(!prompt.contains(&tokenizer.id_of("<|im_end|>").unwrap()));
/// # Ok(())
/// # }
/// ```
pub struct Tokenizer {
    model: Model,
    tokens: Vec<Token>,
    ids: HashMap<String, u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    name: PathBuf,
}

enum Model {
    ByteLevel { splitter: Splitter, bpe: Box<tokenizers::Tokenizer> },
    Spm { splitter: Splitter, spm: Box<spm::Spm> },
    Json { parse: Box<tokenizers::Tokenizer>, as_text: Box<tokenizers::Tokenizer> },
}

/// One entry of the vocabulary.
#[derive(Debug, Clone, Default)]
struct Token {
    /// What it adds to a text.
    bytes: Vec<u8>,
    special: bool,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` of the Hugging Face format. It names no BOS and EOS; see
    /// [`Tokenizer::with_bos`] and [`Tokenizer::with_eos`].
    pub fn from_json_file(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        Self::from_json(&bytes, path)
    }

    /// Reads a `tokenizer.json` that is in memory already; `name` stands for it in error
    /// messages.
    pub fn from_json(bytes: &[u8], name: &Path) -> Result<Self> {
        json::tokenizer(bytes, name)
    }

    /// Token ids of `text`, without BOS or EOS.
    ///
    /// A SentencePiece vocabulary with a space prefix (Llama 2; not Gemma 3) puts a space before
    /// the first word, as its training did.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        match &self.model {
            Model::ByteLevel { splitter, bpe } => {
                for (piece, id) in splitter.split(text, special) {
                    match id {
                        Some(id) => ids.push(id),
                        None => ids.extend(bpe.encode_fast(piece, false)?.get_ids()),
                    }
                }
            }
            Model::Spm { splitter, spm } => {
                let mut after_special = true;
                for (piece, id) in splitter.split(text, special) {
                    match id {
                        Some(id) => ids.push(id),
                        None => spm.encode(piece, after_special, &mut ids),
                    }
                    after_special = id.is_some();
                }
            }
            Model::Json { parse, as_text } => {
                let tokenizer = if special == Special::Parse { parse } else { as_text };
                let encoding = json::guard(&self.name, || tokenizer.encode_fast(text, false))?;
                ids.extend(encoding.get_ids());
            }
        }
        Ok(ids)
    }

    /// The text of `ids` without special tokens. Bytes that are not UTF-8, such as half a
    /// character at the end, become U+FFFD; an id outside the vocabulary is an [`Error::Data`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut bytes = Vec::new();
        for &id in ids {
            let Some(token) = self.tokens.get(id as usize) else {
                let expected = format!("a token id below {}", self.tokens.len());
                return Err(Error::data(format!("the token id {id}"), expected));
            };
            if !token.special {
                bytes.extend_from_slice(&token.bytes);
            }
        }
        if let Model::Spm { spm, .. } = &self.model
            && spm.space_prefix()
            && bytes.first() == Some(&b' ')
        {
            bytes.remove(0);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The bytes that a token adds to a text (for a special token, its name); `None` for an id
    /// outside the vocabulary. They may be part of a character.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id as usize).map(|token| token.bytes.as_slice())
    }

    /// Whether `id` is a special token: one that steers the model and is no part of a text.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokens.get(id as usize).is_some_and(|token| token.special)
    }

    /// The id of the token that the vocabulary spells `token`, for example `<|im_end|>`.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// Number of ids, so each id is below it.
    pub fn vocabulary_size(&self) -> usize {
        self.tokens.len()
    }

    /// The token that begins a text, when the source names one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text or a turn, when the source names one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether a prompt begins with [`Tokenizer::bos`] (a chat template often writes it itself:
    /// then don't add a second one).
    pub fn adds_bos(&self) -> bool {
        self.add_bos && self.bos.is_some()
    }

    /// Names the token that begins a text; prompts begin with it from now on.
    pub fn with_bos(mut self, token: &str) -> Result<Self> {
        self.bos = Some(self.known(token)?);
        self.add_bos = true;
        Ok(self)
    }

    /// Names the token that ends a text or a turn.
    pub fn with_eos(mut self, token: &str) -> Result<Self> {
        self.eos = Some(self.known(token)?);
        Ok(self)
    }

    fn known(&self, token: &str) -> Result<u32> {
        self.id_of(token).ok_or_else(|| {
            invalid(&self.name, format!("the token {token:?} is not in the vocabulary"))
        })
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("name", &self.name)
            .field("tokens", &self.tokens.len())
            .finish()
    }
}

fn invalid(name: &Path, problem: impl Into<String>) -> Error {
    Error::asset(
        name.display().to_string(),
        problem,
        "use the tokenizer that belongs to the model, or fetch it again",
    )
}
