//! Typed access to the key–value pairs of a GGUF header.
//!
//! Nothing is decoded while a file is opened: each value stays a checked range of the file's
//! bytes, so a header costs no memory beyond its own size, whatever lengths it declares.

use super::Gguf;
use super::cursor::{Cursor, Problem};
use crate::pretrained::weights;
use crate::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;

/// Element type of a value, with the codes of the GGUF specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    U64,
    I64,
    F64,
}

impl Kind {
    fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of one element; `None` for strings, whose size varies.
    fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

/// Code of the array type, which holds an element type and a count before its elements.
const ARRAY: u32 = 9;

/// A value whose bytes are known to lie inside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    kind: Kind,
    /// Number of elements; `None` for a single value.
    count: Option<usize>,
    /// The value's bytes in the file: a string without its length, an array's elements with
    /// theirs.
    range: Range<usize>,
}

impl Entry {
    /// The value of a single u32, which needs no [`Gguf`] yet.
    pub(super) fn u32(&self, file: &[u8]) -> Option<u32> {
        match (self.kind, self.count) {
            (Kind::U32, None) => integer(self.kind, &file[self.range.clone()])?.try_into().ok(),
            _ => None,
        }
    }
}

/// The key–value pairs of one file, by key.
pub(super) type Entries = HashMap<String, Entry>;

/// Reads one value and checks that all of it lies inside the header.
pub(super) fn read_entry(cursor: &mut Cursor<'_>) -> Result<Entry, Problem> {
    let code = cursor.u32()?;
    let is_array = code == ARRAY;
    let code = if is_array { cursor.u32()? } else { code };
    let Some(kind) = Kind::from_code(code) else {
        return Err(match code {
            ARRAY => "it is an array of arrays, which no supported model has".into(),
            _ => format!("its type code {code} is none of the GGUF specification"),
        });
    };
    let count = if is_array { Some(cursor.u64()?) } else { None };
    let left = cursor.remaining() as u64;
    let start = cursor.position();
    match (kind.size(), count) {
        (Some(size), count) => {
            let bytes = count.unwrap_or(1).saturating_mul(size as u64);
            let found = cursor.take(bytes)?;
            if kind == Kind::Bool && found.iter().any(|&byte| byte > 1) {
                return Err("a bool is neither 0 nor 1".into());
            }
        }
        (None, None) => {
            let bytes = cursor.string()?;
            let range = cursor.position() - bytes.len()..cursor.position();
            return Ok(Entry { kind, count: None, range });
        }
        (None, Some(count)) => {
            // Each string takes 8 bytes at least, which bounds the loop by the file.
            if count > left / 8 {
                return Err(format!("{count} strings are declared but {left} bytes are left"));
            }
            for _ in 0..count {
                cursor.string()?;
            }
        }
    }
    let count = count.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
    Ok(Entry { kind, count, range: start..cursor.position() })
}

/// The metadata of a [`Gguf`] file.
#[derive(Debug, Clone, Copy)]
pub struct Metadata<'a> {
    pub(super) gguf: &'a Gguf,
}

impl<'a> Metadata<'a> {
    /// All keys, in alphabetical order.
    pub fn keys(&self) -> Vec<&'a str> {
        let mut keys: Vec<&str> = self.gguf.entries.keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }

    /// The value of `key`, when the file has it.
    pub fn find(&self, key: &str) -> Option<Value<'a>> {
        let (key, entry) = self.gguf.entries.get_key_value(key)?;
        Some(Value { gguf: self.gguf, key, entry })
    }

    /// The value of `key`; an absent key is an [`Error::Asset`] that lists the nearest keys.
    pub fn get(&self, key: &str) -> Result<Value<'a>> {
        self.find(key).ok_or_else(|| {
            let near = weights::suggest(key, self.gguf.entries.keys().map(String::as_str));
            self.gguf.invalid(format!("the metadata key {key} is missing{near}"))
        })
    }

    /// A whole number that is not negative.
    pub fn u64(&self, key: &str) -> Result<u64> {
        self.get(key)?.u64()
    }

    /// A [`Metadata::u64`] as an index or size of this machine.
    pub fn usize(&self, key: &str) -> Result<usize> {
        self.get(key)?.usize()
    }

    /// A finite number; whole numbers are converted.
    pub fn f64(&self, key: &str) -> Result<f64> {
        self.get(key)?.f64()
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.get(key)?.bool()
    }

    /// A text.
    pub fn str(&self, key: &str) -> Result<&'a str> {
        self.get(key)?.str()
    }

    /// An array of texts.
    pub fn strings(&self, key: &str) -> Result<Vec<&'a str>> {
        self.get(key)?.strings()
    }
}

/// One metadata value; each getter fails with an [`Error::Asset`] that names the key, the type
/// found and the type wanted.
#[derive(Debug, Clone, Copy)]
pub struct Value<'a> {
    gguf: &'a Gguf,
    key: &'a str,
    entry: &'a Entry,
}

impl<'a> Value<'a> {
    fn bytes(&self) -> &'a [u8] {
        &self.gguf.bytes()[self.entry.range.clone()]
    }

    fn wrong(&self, wanted: &str) -> Error {
        let kind = self.entry.kind.name();
        let found = match self.entry.count {
            Some(count) => format!("an array of {count} {kind} values"),
            None if matches!(kind, "string" | "bool") => format!("a {kind}"),
            None => match integer(self.entry.kind, self.bytes()) {
                Some(value) => format!("the {kind} {value}"),
                None => format!("the {kind} {}", float(self.entry.kind, self.bytes())),
            },
        };
        self.gguf.invalid(format!("the metadata key {} holds {found}, not {wanted}", self.key))
    }

    fn scalar(&self, wanted: &str) -> Result<(Kind, &'a [u8])> {
        match self.entry.count {
            None => Ok((self.entry.kind, self.bytes())),
            Some(_) => Err(self.wrong(wanted)),
        }
    }

    /// Number of elements of an array, `None` for a single value.
    pub fn array_len(&self) -> Option<usize> {
        self.entry.count
    }

    /// A whole number that is not negative, stored in any integer type.
    pub fn u64(&self) -> Result<u64> {
        const WANTED: &str = "a whole number";
        let (kind, bytes) = self.scalar(WANTED)?;
        integer(kind, bytes)
            .and_then(|value| u64::try_from(value).ok())
            .ok_or_else(|| self.wrong(WANTED))
    }

    /// [`Value::u64`] as an index or size of this machine.
    pub fn usize(&self) -> Result<usize> {
        usize::try_from(self.u64()?).map_err(|_| self.wrong("a size of this machine"))
    }

    /// [`Value::u64`] as a token id.
    pub fn u32(&self) -> Result<u32> {
        u32::try_from(self.u64()?).map_err(|_| self.wrong("a 32-bit number"))
    }

    /// A finite number; whole numbers are converted.
    pub fn f64(&self) -> Result<f64> {
        const WANTED: &str = "a finite number";
        let (kind, bytes) = self.scalar(WANTED)?;
        let value = match integer(kind, bytes) {
            Some(value) => value as f64,
            None => float(kind, bytes),
        };
        if value.is_finite() { Ok(value) } else { Err(self.wrong(WANTED)) }
    }

    /// A truth value.
    pub fn bool(&self) -> Result<bool> {
        match self.scalar("a bool")? {
            (Kind::Bool, bytes) => Ok(bytes == [1]),
            _ => Err(self.wrong("a bool")),
        }
    }

    /// A text in UTF-8.
    pub fn str(&self) -> Result<&'a str> {
        match self.scalar("a string")? {
            (Kind::String, bytes) => self.utf8(bytes),
            _ => Err(self.wrong("a string")),
        }
    }

    /// An array of texts in UTF-8.
    pub fn strings(&self) -> Result<Vec<&'a str>> {
        let (Kind::String, Some(count)) = (self.entry.kind, self.entry.count) else {
            return Err(self.wrong("an array of strings"));
        };
        let mut cursor = Cursor::new(self.bytes());
        let mut out = Vec::with_capacity(count);
        for _ in 0..count {
            out.push(self.utf8(cursor.string().map_err(|problem| self.gguf.invalid(problem))?)?);
        }
        Ok(out)
    }

    /// An array of finite numbers; whole numbers are converted.
    pub fn f64s(&self) -> Result<Vec<f64>> {
        let convert = |kind, bytes: &[u8]| match integer(kind, bytes) {
            Some(value) => value as f64,
            None => float(kind, bytes),
        };
        let values = self.numbers("an array of finite numbers", convert)?;
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(self.wrong("an array of finite numbers")),
        }
    }

    /// An array of whole numbers, stored in any integer type.
    pub fn i64s(&self) -> Result<Vec<i64>> {
        const WANTED: &str = "an array of whole numbers";
        let convert = |kind, bytes: &[u8]| integer(kind, bytes).and_then(|v| i64::try_from(v).ok());
        let values = self.numbers(WANTED, convert)?;
        values.into_iter().collect::<Option<_>>().ok_or_else(|| self.wrong(WANTED))
    }

    fn numbers<T>(&self, wanted: &str, convert: impl Fn(Kind, &[u8]) -> T) -> Result<Vec<T>> {
        let kind = self.entry.kind;
        match (kind.size(), self.entry.count) {
            (Some(size), Some(_)) if kind != Kind::Bool => {
                Ok(self.bytes().chunks_exact(size).map(|bytes| convert(kind, bytes)).collect())
            }
            _ => Err(self.wrong(wanted)),
        }
    }

    fn utf8(&self, bytes: &'a [u8]) -> Result<&'a str> {
        std::str::from_utf8(bytes).map_err(|_| {
            self.gguf.invalid(format!("the metadata key {} holds text that is not UTF-8", self.key))
        })
    }
}

/// The value of an integer type, `None` for the other types. `bytes` are little-endian.
fn integer(kind: Kind, bytes: &[u8]) -> Option<i128> {
    let mut wide = [0; 16];
    let count = bytes.len().min(8);
    wide[..count].copy_from_slice(&bytes[..count]);
    let unsigned = i128::from_le_bytes(wide);
    let signed = |bits: u32| {
        let sign = 1i128 << (bits - 1);
        (unsigned ^ sign) - sign
    };
    Some(match kind {
        Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => unsigned,
        Kind::I8 => signed(8),
        Kind::I16 => signed(16),
        Kind::I32 => signed(32),
        Kind::I64 => signed(64),
        Kind::F32 | Kind::F64 | Kind::Bool | Kind::String => return None,
    })
}

/// The value of a float type, NaN for the other types.
fn float(kind: Kind, bytes: &[u8]) -> f64 {
    match (kind, bytes) {
        (Kind::F32, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
        (Kind::F64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_keep_their_sign() {
        assert_eq!(integer(Kind::I8, &[0xff]), Some(-1));
        assert_eq!(integer(Kind::U8, &[0xff]), Some(255));
        assert_eq!(integer(Kind::I64, &i64::MIN.to_le_bytes()), Some(i128::from(i64::MIN)));
        assert_eq!(integer(Kind::U64, &u64::MAX.to_le_bytes()), Some(i128::from(u64::MAX)));
        assert_eq!(integer(Kind::F32, &[0; 4]), None);
    }

    #[test]
    fn huge_counts_fail_without_allocation() {
        for (kind, count) in [(8u32, u64::MAX), (4, 1 << 62), (12, u64::MAX / 4), (0, 1 << 40)] {
            let mut bytes = Vec::new();
            bytes.extend(ARRAY.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend(count.to_le_bytes());
            bytes.extend([0; 64]);
            assert!(read_entry(&mut Cursor::new(&bytes)).is_err(), "{kind} {count}");
        }
    }
}
