//! The header of a GGUF file: magic, counts, key–value pairs, tensor table.

use super::cursor::{Cursor, Problem};
use super::metadata::{Entries, read_entry};
use candle_core::quantized::GgmlDType;
use std::collections::HashSet;
use std::ops::Range;

const MAX_TENSORS: u64 = 65_536;
const MAX_KEYS: u64 = 65_536;
const MAX_HEADER: usize = 64 << 20;
const MAX_NAME: usize = 1024;
const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

/// One row of the tensor table.
#[derive(Debug, Clone)]
pub(super) struct TensorInfo {
    pub(super) name: String,
    pub(super) dtype: GgmlDType,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    /// Bytes of the file.
    pub(super) range: Range<usize>,
}

#[derive(Debug)]
pub(super) struct Header {
    pub(super) entries: Entries,
    pub(super) tensors: Vec<TensorInfo>,
}

/// Reads the header and checks that every tensor lies in `file`.
pub(super) fn read(file: &[u8]) -> Result<Header, Problem> {
    let mut cursor = Cursor::new(&file[..file.len().min(MAX_HEADER)]);
    read_within(&mut cursor, file).map_err(|problem| match file.len() > MAX_HEADER {
        true => {
            format!("{problem} in the first {} MB, the most a header may have", MAX_HEADER >> 20)
        }
        false => problem,
    })
}

fn read_within(cursor: &mut Cursor<'_>, file: &[u8]) -> Result<Header, Problem> {
    let magic = cursor.take(4)?;
    if magic != b"GGUF" {
        return Err(format!("it begins with {} instead of GGUF", magic.escape_ascii()));
    }
    match cursor.u32()? {
        2 | 3 => {}
        1 => return Err("it is GGUF version 1, only 2 and 3 are read".into()),
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err("it is a big-endian GGUF file, only little-endian ones are read".into());
        }
        version => return Err(format!("it is GGUF version {version}, only 2 and 3 are read")),
    }
    let tensors = limited(cursor.u64()?, MAX_TENSORS, "tensors")?;
    let keys = limited(cursor.u64()?, MAX_KEYS, "metadata keys")?;

    let mut entries = Entries::new();
    for _ in 0..keys {
        let key = name(cursor, "a metadata key")?;
        let entry = read_entry(cursor).map_err(|p| format!("the metadata key {key}: {p}"))?;
        if entries.contains_key(&key) {
            return Err(format!("the metadata key {key} stands in it twice"));
        }
        entries.insert(key, entry);
    }

    let mut raw = Vec::new();
    let mut seen = HashSet::new();
    for _ in 0..tensors {
        let tensor = read_tensor(cursor)?;
        if !seen.insert(tensor.name.clone()) {
            return Err(format!("the tensor {} stands in it twice", tensor.name));
        }
        raw.push(tensor);
    }
    let alignment = alignment(&entries, file)?;
    let data = (cursor.position() as u64).next_multiple_of(alignment);
    let tensors = place(raw, data, alignment, file.len() as u64)?;
    Ok(Header { entries, tensors })
}

fn limited(count: u64, limit: u64, what: &str) -> Result<u64, Problem> {
    if count <= limit {
        Ok(count)
    } else {
        Err(format!("{count} {what} are declared, at most {limit} are read"))
    }
}

fn name(cursor: &mut Cursor<'_>, what: &str) -> Result<String, Problem> {
    let bytes = cursor.string().map_err(|problem| format!("{what}: {problem}"))?;
    if bytes.is_empty() || bytes.len() > MAX_NAME {
        return Err(format!(
            "{what} has a name of {} bytes, expected 1 to {MAX_NAME}",
            bytes.len()
        ));
    }
    match std::str::from_utf8(bytes) {
        Ok(name) => Ok(name.into()),
        Err(_) => Err(format!("{what} has the name \"{}\", not UTF-8", bytes.escape_ascii())),
    }
}

/// A tensor as declared, before its place in the file is known.
struct Declared {
    name: String,
    dtype: GgmlDType,
    shape: Vec<usize>,
    bytes: u64,
    offset: u64,
}

fn read_tensor(cursor: &mut Cursor<'_>) -> Result<Declared, Problem> {
    let name = name(cursor, "a tensor")?;
    let of = |problem: Problem| format!("the tensor {name}: {problem}");
    let dims = cursor.u32().map_err(of)?;
    if dims == 0 || dims > MAX_DIMS {
        return Err(of(format!("it has {dims} dimensions, expected 1 to {MAX_DIMS}")));
    }
    let mut shape = Vec::new();
    for _ in 0..dims {
        shape.push(cursor.u64().map_err(of)?);
    }
    let code = cursor.u32().map_err(of)?;
    let dtype = dtype(code).ok_or_else(|| {
        of(format!("its type code {code} is not supported (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K are)"))
    })?;
    let offset = cursor.u64().map_err(of)?;

    let (block, block_bytes) = (dtype.block_size() as u64, dtype.type_size() as u64);
    if !shape[0].is_multiple_of(block) {
        return Err(of(format!("its rows of {} values are not whole blocks of {block}", shape[0])));
    }
    let values = shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
    let bytes = values
        .filter(|&values| values > 0)
        .and_then(|values| (values / block).checked_mul(block_bytes))
        .ok_or_else(|| of(format!("its dimensions {shape:?} are zero or too large")))?;
    let shape = shape.iter().rev().map(|&dim| usize::try_from(dim)).collect::<Result<_, _>>();
    let shape = shape.map_err(|_| of("its dimensions are too large".into()))?;
    Ok(Declared { name, dtype, shape, bytes, offset })
}

/// The formats of weights; Q8_1 and Q8_K hold activations only and never stand in a file.
fn dtype(code: u32) -> Option<GgmlDType> {
    Some(match code {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

fn alignment(entries: &Entries, file: &[u8]) -> Result<u64, Problem> {
    let Some(entry) = entries.get("general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    match entry.u32(file) {
        Some(value) if value.is_power_of_two() && (8..=65_536).contains(&value) => {
            Ok(u64::from(value))
        }
        Some(value) => {
            Err(format!("general.alignment is {value}, expected a power of two in 8..=65536"))
        }
        None => Err("general.alignment is not a u32".into()),
    }
}

/// Turns offsets into ranges of the file: aligned, inside it and without overlap.
fn place(
    declared: Vec<Declared>,
    data: u64,
    alignment: u64,
    file: u64,
) -> Result<Vec<TensorInfo>, Problem> {
    let mut tensors = Vec::with_capacity(declared.len());
    for Declared { name, dtype, shape, bytes, offset } in declared {
        if !offset.is_multiple_of(alignment) {
            return Err(format!(
                "the tensor {name}: its offset {offset} is not a multiple of {alignment}"
            ));
        }
        let start = data.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(bytes)).filter(|&end| end <= file);
        let range = start.zip(end).and_then(|(start, end)| {
            Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        });
        let Some(range) = range else {
            return Err(format!(
                "the tensor {name}: its {bytes} bytes at offset {offset} reach past the end of the file of {file} bytes"
            ));
        };
        tensors.push(TensorInfo { name, dtype, shape, range });
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_unstable_by_key(|tensor| tensor.range.start);
    for pair in order.windows(2) {
        if pair[0].range.end > pair[1].range.start {
            return Err(format!("the tensors {} and {} overlap", pair[0].name, pair[1].name));
        }
    }
    Ok(tensors)
}
