//! Safetensors files: validation, typed access, and the comparison of names and shapes with what
//! a model expects.

use crate::{Error, Result};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
pub use safetensors::Dtype;
use safetensors::SafeTensors;
use safetensors::tensor::Metadata;
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

const LENGTH_BYTES: usize = 8;
const MAX_TENSORS: usize = 65_536;
const MAX_DIMS: usize = 8;
const MAX_NAME: usize = 1024;

/// A safetensors file in memory, validated: the header is at most 100 MB and inside the file, no
/// name stands in it twice, and the tensors fill the rest of the file in order, without a hole or
/// an overlap, each with as many bytes as its shape and type need.
///
/// The file is read into memory, not mapped, as in [`crate::gguf`].
///
/// ```no_run
/// # fn main() -> common::Result<()> {
/// let weights = common::weights::Safetensors::open("model.safetensors".as_ref())?;
/// weights.check(&[("embed.weight".into(), vec![32_000, 576])])?;
/// let values: Vec<f32> = weights.tensor("embed.weight")?.to_f32()?;
/// # Ok(())
/// # }
/// ```
pub struct Safetensors {
    name: PathBuf,
    bytes: Vec<u8>,
    metadata: Metadata,
    /// Where the data begins in `bytes`.
    data: usize,
    /// In the order of the data.
    names: Vec<String>,
    by_name: HashMap<String, usize>,
}

impl Safetensors {
    /// Reads and validates the file at `path`: [`Error::Io`] when it can't be read,
    /// [`Error::Asset`] when it breaks the format.
    pub fn open(path: &Path) -> Result<Self> {
        let about = std::fs::metadata(path).map_err(Error::io(path))?;
        if !about.is_file() {
            return Err(invalid(path, "it is not a regular file"));
        }
        Self::from_bytes(std::fs::read(path).map_err(Error::io(path))?, path)
    }

    /// Validates a file that is in memory already; `name` stands for it in error messages.
    pub fn from_bytes(bytes: Vec<u8>, name: &Path) -> Result<Self> {
        let wrong = |problem: String| invalid(name, problem);
        let (length, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|error| wrong(error.to_string()))?;
        let data = LENGTH_BYTES + length;
        let names = metadata.offset_keys();
        if names.len() > MAX_TENSORS {
            let count = names.len();
            return Err(wrong(format!("it has {count} tensors, at most {MAX_TENSORS} are read")));
        }
        if let Some(key) = repeated_key(&bytes[LENGTH_BYTES..data]).map_err(&wrong)? {
            return Err(wrong(format!("the name {key} stands in its header twice")));
        }
        for name in &names {
            if name.len() > MAX_NAME {
                return Err(wrong(format!("a tensor has a name of {} bytes", name.len())));
            }
            let shape = metadata.info(name).map_or(&[][..], |info| &info.shape);
            // A zero hides an overflow of the other dimensions from the format's own check.
            let product = shape.iter().try_fold(1usize, |p, &dim| p.checked_mul(dim.max(1)));
            if product.is_none() || shape.len() > MAX_DIMS {
                return Err(wrong(format!("the tensor {name} has the impossible shape {shape:?}")));
            }
        }
        let by_name = names.iter().cloned().zip(0..).collect();
        Ok(Self { name: name.to_path_buf(), bytes, metadata, data, names, by_name })
    }

    /// The path or name the file was opened by.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Names of all tensors, in the order of their data.
    pub fn tensor_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The free-text entries of the header (`__metadata__`), such as `format`.
    pub fn metadata(&self) -> Option<&HashMap<String, String>> {
        self.metadata.metadata().as_ref()
    }

    /// The tensor called `name`, when the file has it.
    pub fn find_tensor(&self, name: &str) -> Option<WeightTensor<'_>> {
        let info = self.metadata.info(name)?;
        let name = &self.names[*self.by_name.get(name)?];
        let (start, end) = info.data_offsets;
        let bytes = &self.bytes[self.data + start..self.data + end];
        Some(WeightTensor { file: self, name, dtype: info.dtype, shape: &info.shape, bytes })
    }

    /// The tensor called `name`; an absent one is an [`Error::Asset`] that lists the nearest
    /// names.
    pub fn tensor(&self, name: &str) -> Result<WeightTensor<'_>> {
        self.find_tensor(name).ok_or_else(|| {
            let near = suggest(name, self.tensor_names());
            invalid(&self.name, format!("the tensor {name} is missing{near}"))
        })
    }

    /// All tensors of a float type, as f32 on the CPU; others (counters, position ids) are left
    /// out.
    pub fn float_tensors(&self) -> Result<HashMap<String, Tensor>> {
        let mut tensors = HashMap::with_capacity(self.names.len());
        for name in &self.names {
            let tensor = self.tensor(name)?;
            if matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                tensors.insert(name.clone(), tensor.to_tensor()?);
            }
        }
        Ok(tensors)
    }

    /// Compares names and shapes with what a model needs; all problems come in one error that
    /// names the nearest names. Tensors that are not in `expected` are no problem, as files carry
    /// buffers and tied copies.
    pub fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        let problems = problems(expected, self.tensor_names(), |name| {
            self.metadata.info(name).map(|info| info.shape.clone())
        });
        if problems.is_empty() { Ok(()) } else { Err(invalid(&self.name, problems.join("; "))) }
    }
}

impl fmt::Debug for Safetensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Safetensors")
            .field("name", &self.name)
            .field("bytes", &self.bytes.len())
            .field("tensors", &self.names.len())
            .finish()
    }
}

/// A tensor inside a [`Safetensors`] file.
#[derive(Debug, Clone, Copy)]
pub struct WeightTensor<'a> {
    file: &'a Safetensors,
    name: &'a str,
    dtype: Dtype,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl<'a> WeightTensor<'a> {
    /// Name in the file, such as `model.layers.0.self_attn.q_proj.weight`.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Storage type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Outermost dimension first; empty for a scalar, and a dimension may be zero.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The stored little-endian bytes, in row-major order. They may lie at an odd address.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// All values as f32, in row-major order. A type other than F32, F16 and BF16 is an
    /// [`Error::Asset`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let halves = || self.bytes.as_chunks::<2>().0.iter();
        Ok(match self.dtype {
            Dtype::F32 => {
                self.bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
            }
            Dtype::F16 => halves().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => halves().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
            other => {
                let problem = format!(
                    "the tensor {} has type {other:?}, expected F32, F16 or BF16",
                    self.name
                );
                return Err(invalid(&self.file.name, problem));
            }
        })
    }

    /// [`WeightTensor::to_f32`] as a tensor on the CPU.
    pub fn to_tensor(&self) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.to_f32()?, self.shape, &Device::Cpu)?)
    }
}

fn invalid(name: &Path, problem: impl Into<String>) -> Error {
    Error::asset(
        name.display().to_string(),
        problem,
        "the file is damaged or belongs to another model: fetch it again or use another one",
    )
}

/// The first key that an object holds twice. JSON parsers keep one of them silently, and not
/// all the same one, so two programs would see two models.
fn repeated_key(json: &[u8]) -> Result<Option<String>, String> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of tensors")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut seen = HashSet::new();
            let mut repeated = None;
            while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                if repeated.is_none() && seen.contains(&key) {
                    repeated = Some(key.clone());
                }
                seen.insert(key);
            }
            Ok(repeated)
        }
    }
    serde_json::Deserializer::from_slice(json)
        .deserialize_map(Keys)
        .map_err(|error| format!("its header is not JSON: {error}"))
}

/// `" (nearest: a, b, c)"` with up to three names that are nearest to `wanted`, else nothing.
pub(crate) fn suggest<'n>(wanted: &str, names: impl Iterator<Item = &'n str>) -> String {
    let near = nearest(wanted, names);
    if near.is_empty() { String::new() } else { format!(" (nearest: {})", near.join(", ")) }
}

/// Up to three of `names` that are nearest to `wanted` by Jaro–Winkler similarity, best first.
fn nearest<'n>(wanted: &str, names: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    const COUNT: usize = 3;
    const LOWEST: f64 = 0.7;
    let mut best: Vec<(f64, &str)> = Vec::new();
    for name in names {
        let similarity = strsim::jaro_winkler(wanted, name);
        if similarity >= LOWEST {
            best.push((similarity, name));
            best.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
            best.truncate(COUNT);
        }
    }
    best.into_iter().map(|(_, name)| name).collect()
}

/// One sentence per tensor of `expected` that is absent or has another shape.
pub(crate) fn problems<'n, N: Iterator<Item = &'n str>>(
    expected: &[(String, Vec<usize>)],
    names: N,
    shape_of: impl Fn(&str) -> Option<Vec<usize>>,
) -> Vec<String> {
    const LISTED: usize = 10;
    let names: Vec<&str> = names.collect();
    let mut problems = Vec::new();
    let mut more = 0;
    for (name, expected) in expected {
        let found = shape_of(name);
        if found.as_ref() == Some(expected) {
            continue;
        }
        if problems.len() == LISTED {
            more += 1;
            continue;
        }
        problems.push(match found {
            Some(found) => format!("{name} has shape {found:?}, expected {expected:?}"),
            None => format!("{name} is missing{}", suggest(name, names.iter().copied())),
        });
    }
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    problems
}
