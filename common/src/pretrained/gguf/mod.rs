//! GGUF files: validation, typed metadata and tensors.
//!
//! [`Gguf`] reads the header itself, with a cursor that is bounded by the file and never
//! allocates by a declared length. candle's own reader divides by `general.alignment` and
//! multiplies dimensions without a check, so a crafted file panics in it or passes as an empty
//! tensor behind a huge shape. Only the layout is read here: every quantised format is decoded
//! by candle (`candle_core::quantized`), so there is one definition of each.
//!
//! What holds for an open file, and need not be checked again:
//! - at most 65,536 tensors and keys, at most 64 MB of header, no duplicate tensor or key;
//! - each tensor has 1 to 4 dimensions, none zero, rows that are whole quantisation blocks, and
//!   its bytes inside the file, aligned and shared with no other tensor;
//! - the hyperparameters of the architecture lie in bounds (see [`Gguf::open`]), token arrays
//!   have one length, and the vocabulary has as many entries as the embedding has rows.
//!
//! The file is read into memory, not mapped: a mapped file that another process truncates ends
//! the program with a signal.

mod check;
mod cursor;
mod header;
mod metadata;

pub use candle_core::quantized::GgmlDType;
pub use metadata::{Metadata, Value};

use crate::pretrained::weights;
use crate::{Error, Result};
use candle_core::quantized::{QStorage, QTensor};
use candle_core::{CpuStorage, Device};
use header::TensorInfo;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A GGUF file in memory, validated.
///
/// ```no_run
/// # fn main() -> common::Result<()> {
/// let gguf = common::gguf::Gguf::open("model.gguf".as_ref())?;
/// let layers = gguf.metadata().usize(&format!("{}.block_count", gguf.architecture()?))?;
/// let embedding = gguf.tensor("token_embd.weight")?;
/// assert_eq!(embedding.to_f32()?.len(), embedding.shape().iter().product::<usize>());
/// # Ok(())
/// # }
/// ```
pub struct Gguf {
    name: PathBuf,
    bytes: Vec<u8>,
    /// Where the file begins in `bytes`: the first 8-byte boundary.
    start: usize,
    entries: metadata::Entries,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl Gguf {
    /// Reads and validates the file at `path`.
    ///
    /// An absent or unreadable file is an [`Error::Io`]; a file that breaks the format or one of
    /// these bounds is an [`Error::Asset`]: GGUF version 2 or 3, `general.alignment` a power of
    /// two in 8..=65536, `block_count` in 1..=512, `head_count` in 1..=4096 and a multiple of
    /// `head_count_kv`, `embedding_length` up to 2²⁰, `context_length` and
    /// `feed_forward_length` up to 2²⁴, finite positive rope bases and norm epsilons.
    pub fn open(path: &Path) -> Result<Self> {
        let about = std::fs::metadata(path).map_err(Error::io(path))?;
        if !about.is_file() {
            return Err(Error::asset(
                path.display().to_string(),
                "it is not a regular file",
                "give the path of a .gguf file",
            ));
        }
        Self::from_bytes(std::fs::read(path).map_err(Error::io(path))?, path)
    }

    /// Validates a file that is in memory already; `name` stands for it in error messages.
    pub fn from_bytes(bytes: Vec<u8>, name: &Path) -> Result<Self> {
        let (bytes, start) = align(bytes);
        let invalid = |problem| invalid(name, problem);
        let header = header::read(&bytes[start..]).map_err(invalid)?;
        let by_name = header
            .tensors
            .iter()
            .enumerate()
            .map(|(index, tensor)| (tensor.name.clone(), index))
            .collect();
        let gguf = Self {
            name: name.to_path_buf(),
            bytes,
            start,
            entries: header.entries,
            tensors: header.tensors,
            by_name,
        };
        check::hyperparameters(&gguf)?;
        check::vocabulary(&gguf)?;
        Ok(gguf)
    }

    /// The path or name the file was opened by.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// `general.architecture`, such as `llama`, `qwen2` or `gemma3`.
    pub fn architecture(&self) -> Result<&str> {
        self.metadata().str("general.architecture")
    }

    /// The key–value pairs of the header.
    pub fn metadata(&self) -> Metadata<'_> {
        Metadata { gguf: self }
    }

    /// Names of all tensors, in the order of the file.
    pub fn tensor_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// The tensor called `name`, when the file has it.
    pub fn find_tensor(&self, name: &str) -> Option<GgufTensor<'_>> {
        let info = &self.tensors[*self.by_name.get(name)?];
        Some(GgufTensor { gguf: self, info, bytes: &self.bytes()[info.range.clone()] })
    }

    /// The tensor called `name`; an absent one is an [`Error::Asset`] that lists the nearest
    /// names.
    pub fn tensor(&self, name: &str) -> Result<GgufTensor<'_>> {
        self.find_tensor(name).ok_or_else(|| {
            let near = weights::suggest(name, self.tensor_names());
            self.invalid(format!("the tensor {name} is missing{near}"))
        })
    }

    /// Compares names and shapes with what a model needs; all problems come in one error. Tensors
    /// that are not in `expected` are no problem, as files carry extra ones (`rope_freqs`).
    pub fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        let problems = weights::problems(expected, self.tensor_names(), |name| {
            self.find_tensor(name).map(|tensor| tensor.info.shape.clone())
        });
        if problems.is_empty() { Ok(()) } else { Err(self.invalid(problems.join("; "))) }
    }

    /// The Jinja chat template of the model, when it has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.metadata().find("tokenizer.chat_template")?.str().ok()
    }

    /// Id of the token that begins a text, when the file names one; below the vocabulary's size.
    pub fn bos_id(&self) -> Option<u32> {
        self.token_id("tokenizer.ggml.bos_token_id")
    }

    /// Id of the token that ends a text or a turn, when the file names one; below the
    /// vocabulary's size.
    pub fn eos_id(&self) -> Option<u32> {
        self.token_id("tokenizer.ggml.eos_token_id")
    }

    fn token_id(&self, key: &str) -> Option<u32> {
        self.metadata().find(key)?.u32().ok()
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn invalid(&self, problem: impl Into<String>) -> Error {
        invalid(&self.name, problem.into())
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("name", &self.name)
            .field("bytes", &self.bytes().len())
            .field("keys", &self.entries.len())
            .field("tensors", &self.tensors.len())
            .finish()
    }
}

/// A tensor inside a [`Gguf`] file.
#[derive(Debug, Clone, Copy)]
pub struct GgufTensor<'a> {
    gguf: &'a Gguf,
    info: &'a TensorInfo,
    bytes: &'a [u8],
}

impl<'a> GgufTensor<'a> {
    /// Name in the file, such as `blk.0.attn_q.weight`.
    pub fn name(&self) -> &'a str {
        &self.info.name
    }

    /// Storage format: a float type or one of the quantised formats that candle decodes.
    pub fn dtype(&self) -> GgmlDType {
        self.info.dtype
    }

    /// Outermost dimension first, so a matrix is `[rows, cols]` with contiguous rows (GGUF
    /// itself stores the reverse). One to four dimensions, none zero.
    pub fn shape(&self) -> &'a [usize] {
        &self.info.shape
    }

    /// The stored bytes, `shape` ÷ block size × block bytes of them.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// All values as f32, in row-major order of [`GgufTensor::shape`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        // One run of blocks at a time, as candle copies what it decodes.
        const BLOCKS: usize = 1 << 14;
        let dtype = self.info.dtype;
        let mut out = Vec::with_capacity(self.info.shape.iter().product());
        for chunk in self.bytes.chunks(BLOCKS * dtype.type_size()) {
            let count = chunk.len() / dtype.type_size() * dtype.block_size();
            match dtype.from_data(Cow::Borrowed(chunk)).dequantize(count)? {
                CpuStorage::F32(values) => out.extend_from_slice(&values),
                _ => {
                    let name = &self.info.name;
                    return Err(Error::Bug(format!("candle dequantised {name} to another type")));
                }
            }
        }
        Ok(out)
    }

    /// The tensor in its stored format, for candle's quantised matrix products.
    pub fn to_qtensor(&self) -> Result<QTensor> {
        let storage =
            QStorage::from_data(Cow::Borrowed(self.bytes), &Device::Cpu, self.info.dtype)?;
        Ok(QTensor::new(storage, self.info.shape.as_slice())?)
    }

    /// An [`Error::Asset`] about this tensor, for the code that uses it.
    pub fn invalid(&self, problem: impl fmt::Display) -> Error {
        self.gguf.invalid(format!("the tensor {} {problem}", self.info.name))
    }
}

fn invalid(name: &Path, problem: String) -> Error {
    Error::asset(
        name.display().to_string(),
        problem,
        "the file is damaged or not a supported GGUF model: fetch it again or use another one",
    )
}

/// Puts the file on an 8-byte boundary, which candle's block types need. A `Vec<u8>` of this
/// size nearly always lies on one, and then nothing is copied.
fn align(bytes: Vec<u8>) -> (Vec<u8>, usize) {
    const ALIGN: usize = 8;
    let offset = |bytes: &Vec<u8>| bytes.as_ptr().addr().wrapping_neg() % ALIGN;
    if offset(&bytes) == 0 {
        return (bytes, 0);
    }
    let mut moved = Vec::with_capacity(bytes.len() + ALIGN);
    let start = offset(&moved);
    moved.resize(start, 0);
    moved.extend_from_slice(&bytes);
    (moved, start)
}
