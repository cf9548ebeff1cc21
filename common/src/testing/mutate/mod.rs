//! Tiny valid model files, and mutations of them that know the format: a wrong byte at a random
//! place is mostly noise inside weights, so each mutation picks a field (a count, a length, a
//! type, a dimension, an offset) or an entry of the file.

mod gguf;
mod json;
mod safetensors;

pub use gguf::{GgufSeed, TensorSpec, Value, tiny_gguf};
pub use json::{mutate_json, tiny_config_json, tiny_tokenizer_json};
pub use safetensors::{SafetensorsSeed, StoredTensor, tiny_safetensors};

use crate::rng::Stream;
use std::ops::Range;

/// The bytes of a file, with the places of its little-endian number fields and texts.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// The file.
    pub bytes: Vec<u8>,
    fields: Vec<(String, Range<usize>)>,
}

impl Layout {
    fn push(&mut self, field: impl Into<String>, bytes: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.fields.push((field.into(), start..self.bytes.len()));
    }

    /// Overwrites the number field called `field` with the low bytes of `value`.
    ///
    /// # Panics
    /// When there is no such field.
    #[track_caller]
    pub fn set(&mut self, field: &str, value: u64) {
        let found = self.fields.iter().find(|(name, _)| name == field);
        let Some((_, range)) = found else {
            panic!("no field {field}; fields are {:?}", self.names());
        };
        write(&mut self.bytes[range.clone()], value);
    }

    /// Names of all fields, in the order of the file.
    pub fn names(&self) -> Vec<&str> {
        self.fields.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Overwrites one random field with a number that is likely to break arithmetic.
    fn mutate_field(&mut self, stream: &mut Stream) {
        let (_, range) = &self.fields[stream.below(self.fields.len())];
        let field = &mut self.bytes[range.clone()];
        let mut old = [0; 8];
        let width = field.len().min(8);
        old[..width].copy_from_slice(&field[..width]);
        let value = interesting(u64::from_le_bytes(old), stream);
        write(field, value);
    }

    /// Cuts the file at a random place, mostly at the start or inside of a field.
    fn truncate(&mut self, stream: &mut Stream) {
        let place = match stream.chance(0.7) {
            true => {
                let (_, range) = &self.fields[stream.below(self.fields.len())];
                range.start + stream.below(range.len() + 1)
            }
            false => stream.below(self.bytes.len()),
        };
        self.bytes.truncate(place);
    }
}

fn write(field: &mut [u8], value: u64) {
    for (byte, new) in field.iter_mut().zip(value.to_le_bytes()) {
        *byte = new;
    }
}

/// Numbers at the edges of types and near `old`.
fn interesting(old: u64, stream: &mut Stream) -> u64 {
    const EDGES: [u64; 22] = [
        0,
        1,
        2,
        3,
        7,
        9,
        12,
        13,
        32,
        255,
        256,
        65_537,
        1_000_000_000,
        i32::MAX as u64,
        1 << 31,
        u32::MAX as u64,
        1 << 32,
        1 << 40,
        1 << 59,
        i64::MAX as u64,
        1 << 63,
        u64::MAX,
    ];
    match stream.below(8) {
        0 => old.wrapping_add(1),
        1 => old.wrapping_sub(1),
        2 => old.wrapping_mul(2),
        3 => old / 2,
        4 => old ^ (1 << stream.below(64)),
        5 => stream.below(1 << 20) as u64,
        _ => EDGES[stream.below(EDGES.len())],
    }
}

/// Flips one to eight random bits; does nothing to an empty file.
pub fn flip_bits(bytes: &mut [u8], stream: &mut Stream) {
    if bytes.is_empty() {
        return;
    }
    for _ in 0..=stream.below(8) {
        let place = stream.below(bytes.len());
        bytes[place] ^= 1 << stream.below(8);
    }
}
