//! Blocks of 32 weights out of GGUF's quantised formats.
//!
//! Layouts: ggml's `ggml-common.h`. Q4_0, Q5_0 and Q8_0 hold `d · q`, Q4_1 `d · q + m`; Q4_K has
//! super-blocks of 256 with 6-bit scales and mins, `d · scale · q − dmin · min`.

use super::kernels::{BLOCK, PackedKind};
use crate::gguf::GgmlDType;
use half::f16;

/// The packed kind that fits a format best. Formats without a reader here are requantised.
pub(super) fn kind(dtype: GgmlDType) -> PackedKind {
    match dtype {
        GgmlDType::Q4_0 | GgmlDType::Q4_1 | GgmlDType::Q4K => PackedKind::Q4,
        _ => PackedKind::Q8,
    }
}

/// The blocks of a tensor whose format needs no requantising.
pub(super) struct Blocks<'a> {
    dtype: GgmlDType,
    bytes: &'a [u8],
    kind: PackedKind,
}

impl<'a> Blocks<'a> {
    /// `None` where `dtype` does not fit `kind` without requantising.
    pub(super) fn new(dtype: GgmlDType, bytes: &'a [u8], kind: PackedKind) -> Option<Self> {
        use GgmlDType::{Q4_0, Q4_1, Q4K, Q5_0, Q8_0};
        let fits = match kind {
            PackedKind::Q4 => matches!(dtype, Q4_0 | Q4_1 | Q4K),
            PackedKind::Q8 => matches!(dtype, Q4_0 | Q5_0 | Q8_0),
        };
        fits.then_some(Self { dtype, bytes, kind })
    }

    /// Scale, min and quantised values of block `index`, counted over the whole tensor.
    pub(super) fn get(&self, index: usize) -> (f16, f16, [u8; BLOCK]) {
        let size = self.dtype.type_size();
        let per_stored = self.dtype.block_size() / BLOCK;
        let stored = &self.bytes[index / per_stored * size..][..size];
        let half = |at: usize| f16::from_le_bytes([stored[at], stored[at + 1]]);
        let d = half(0);
        match self.dtype {
            GgmlDType::Q8_0 => (d, f16::ZERO, std::array::from_fn(|i| stored[2 + i])),
            GgmlDType::Q5_0 => {
                let high = u32::from_le_bytes([stored[2], stored[3], stored[4], stored[5]]);
                let low = nibbles(&stored[6..]);
                let quants = std::array::from_fn(|i| {
                    (low[i] | ((high >> i & 1) as u8) << 4).wrapping_sub(16)
                });
                (d, f16::ZERO, quants)
            }
            GgmlDType::Q4_1 => (d, half(2), nibbles(&stored[4..])),
            GgmlDType::Q4K => {
                let part = index % per_stored;
                let (scale, min) = q4k_scale(&stored[4..16], part);
                let bytes = &stored[16 + part / 2 * BLOCK..][..BLOCK];
                let quants = std::array::from_fn(|i| {
                    if part.is_multiple_of(2) { bytes[i] & 15 } else { bytes[i] >> 4 }
                });
                let min = -half(2).to_f32() * f32::from(min);
                (f16::from_f32(d.to_f32() * f32::from(scale)), f16::from_f32(min), quants)
            }
            // Q4_0, by `new`.
            _ => {
                let quants = nibbles(&stored[2..]);
                match self.kind {
                    PackedKind::Q4 => (d, f16::from_f32(-8.0 * d.to_f32()), quants),
                    PackedKind::Q8 => (d, f16::ZERO, quants.map(|q| q.wrapping_sub(8))),
                }
            }
        }
    }
}

/// 32 values of 4 bits: the low halves of 16 bytes, then the high ones.
fn nibbles(bytes: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

/// Scale and min of block `part` (0..8) of a Q4_K super-block, 6 bits each in 12 bytes.
fn q4k_scale(packed: &[u8], part: usize) -> (u8, u8) {
    if part < 4 {
        (packed[part] & 63, packed[part + 4] & 63)
    } else {
        (
            (packed[part + 4] & 15) | (packed[part - 4] >> 6) << 4,
            (packed[part + 4] >> 4) | (packed[part] >> 6) << 4,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::quantized::QTensor;
    use candle_core::{Device, Tensor};

    /// Blocks that need no requantising hold the values that candle decodes.
    #[test]
    fn blocks_equal_candle() {
        let values: Vec<f32> = (0..1024).map(|i| ((i * 37 % 101) as f32 - 40.0) / 17.0).collect();
        let tensor = Tensor::from_vec(values, (4, 256), &Device::Cpu).unwrap();
        use GgmlDType::{Q4_0, Q4_1, Q4K, Q5_0, Q8_0};
        for (dtype, kind, tolerance) in [
            (Q4_0, PackedKind::Q4, 2e-3),
            (Q4_0, PackedKind::Q8, 1e-6),
            (Q4_1, PackedKind::Q4, 1e-6),
            (Q4K, PackedKind::Q4, 4e-3),
            (Q5_0, PackedKind::Q8, 1e-6),
            (Q8_0, PackedKind::Q8, 1e-6),
        ] {
            let quantised = QTensor::quantize(&tensor, dtype).unwrap();
            let expected = quantised.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
            let expected: Vec<f32> = expected.to_vec1().unwrap();
            let bytes = quantised.data().unwrap();
            let blocks = Blocks::new(dtype, &bytes, kind).unwrap();
            for (index, expected) in expected.chunks(BLOCK).enumerate() {
                let (scale, min, quants) = blocks.get(index);
                for (&q, &expected) in quants.iter().zip(expected) {
                    let q = if kind == PackedKind::Q8 { f32::from(q as i8) } else { f32::from(q) };
                    let found = q * scale.to_f32() + min.to_f32();
                    assert!((found - expected).abs() <= tolerance, "{dtype:?} {found} {expected}");
                }
            }
        }
        assert!(Blocks::new(GgmlDType::Q6K, &[], PackedKind::Q8).is_none());
        assert_eq!(common(&[Q4_1, Q5_0]), PackedKind::Q8);
        assert_eq!(common(&[Q4_1, Q4K]), PackedKind::Q4);
    }

    fn common(dtypes: &[GgmlDType]) -> PackedKind {
        super::super::matrix::common_kind(dtypes.iter().map(|&dtype| kind(dtype)))
    }
}
