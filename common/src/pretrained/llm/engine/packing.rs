//! Blocks of 32 weights out of GGUF's quantised formats.
//!
//! Layouts: ggml's `ggml-common.h`. Q4_0, Q5_0 and Q8_0 hold `d · q`, Q4_1 `d · q + m`; Q4_K has
//! super-blocks of 256 with 6-bit scales and mins, `d · scale · q − dmin · min`, Q6_K super-blocks of
//! 256 with 8-bit scales of 16 weights each, `d · scale · q`.

use super::kernels::{BLOCK, Block, PackedKind};
use crate::gguf::GgmlDType;
use half::f16;

/// The packed kind that fits a format best. Formats without a reader here are requantised.
pub(super) fn kind(dtype: GgmlDType) -> PackedKind {
    match dtype {
        GgmlDType::Q4_0 | GgmlDType::Q4_1 => PackedKind::Q4,
        GgmlDType::Q4K => PackedKind::Q4K,
        GgmlDType::Q6K => PackedKind::Q6K,
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
        use GgmlDType::{Q4_0, Q4_1, Q4K, Q5_0, Q6K, Q8_0};
        let fits = match kind {
            PackedKind::Q4 => matches!(dtype, Q4_0 | Q4_1),
            PackedKind::Q4K => dtype == Q4K,
            PackedKind::Q6K => dtype == Q6K,
            PackedKind::Q8 => matches!(dtype, Q4_0 | Q5_0 | Q8_0),
        };
        fits.then_some(Self { dtype, bytes, kind })
    }

    /// Block `index`, counted over the whole tensor.
    pub(super) fn get(&self, index: usize) -> Block {
        let size = self.dtype.type_size();
        let per_stored = self.dtype.block_size() / BLOCK;
        let (part, stored) = (index % per_stored, &self.bytes[index / per_stored * size..][..size]);
        let half = |at: usize| f16::from_le_bytes([stored[at], stored[at + 1]]).to_f32();
        let d = half(0);
        let (params, quants) = match self.dtype {
            GgmlDType::Q8_0 => ([d, 0.0], std::array::from_fn(|i| stored[2 + i])),
            GgmlDType::Q5_0 => {
                let high = u32::from_le_bytes([stored[2], stored[3], stored[4], stored[5]]);
                let low = nibbles(&stored[6..]);
                let quants = std::array::from_fn(|i| {
                    (low[i] | ((high >> i & 1) as u8) << 4).wrapping_sub(16)
                });
                ([d, 0.0], quants)
            }
            GgmlDType::Q4_1 => ([d, half(2)], nibbles(&stored[4..])),
            GgmlDType::Q4K => {
                let (scale, min) = q4k_scale(&stored[4..16], part);
                let bytes = &stored[16 + part / 2 * BLOCK..][..BLOCK];
                let quants = bytes_halves(bytes, part % 2 == 1);
                ([d * f32::from(scale), -half(2) * f32::from(min)], quants)
            }
            GgmlDType::Q6K => {
                let (side, quarter) = (part / 4, part % 4);
                let low = &stored[64 * side + quarter % 2 * BLOCK..][..BLOCK];
                let low = bytes_halves(low, quarter >= 2);
                let high = &stored[128 + BLOCK * side..][..BLOCK];
                let quants = std::array::from_fn(|i| {
                    (low[i] | (high[i] >> (2 * quarter) & 3) << 4).wrapping_sub(32)
                });
                let d = half(208);
                let scale = |i: usize| d * f32::from(stored[192 + 2 * part + i] as i8);
                ([scale(0), scale(1)], quants)
            }
            // Q4_0, by `new`.
            _ => {
                let quants = nibbles(&stored[2..]);
                match self.kind {
                    PackedKind::Q4 => ([d, -8.0 * d], quants),
                    _ => ([d, 0.0], quants.map(|q| q.wrapping_sub(8))),
                }
            }
        };
        Block { params, quants }
    }
}

/// The low or high halves of 32 bytes.
fn bytes_halves(bytes: &[u8], high: bool) -> [u8; BLOCK] {
    std::array::from_fn(|i| if high { bytes[i] >> 4 } else { bytes[i] & 15 })
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
    use super::super::kernels::Packed;
    use super::*;
    use candle_core::quantized::QTensor;
    use candle_core::{Device, Tensor};

    /// Blocks that need no requantising hold the values that candle decodes.
    #[test]
    fn blocks_equal_candle() {
        let values: Vec<f32> = (0..1024).map(|i| ((i * 37 % 101) as f32 - 40.0) / 17.0).collect();
        let tensor = Tensor::from_vec(values, (4, 256), &Device::Cpu).unwrap();
        use GgmlDType::{Q4_0, Q4_1, Q4K, Q5_0, Q6K, Q8_0};
        for (dtype, kind, tolerance) in [
            // 8 d may round as f16
            (Q4_0, PackedKind::Q4, 2e-3),
            (Q4_0, PackedKind::Q8, 1e-6),
            (Q4_1, PackedKind::Q4, 1e-6),
            (Q4K, PackedKind::Q4K, 1e-6),
            (Q5_0, PackedKind::Q8, 1e-6),
            (Q6K, PackedKind::Q6K, 1e-6),
            (Q8_0, PackedKind::Q8, 1e-6),
        ] {
            let quantised = QTensor::quantize(&tensor, dtype).unwrap();
            let expected = quantised.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
            let expected: Vec<f32> = expected.to_vec1().unwrap();
            let bytes = quantised.data().unwrap();
            let blocks = Blocks::new(dtype, &bytes, kind).unwrap();
            let mut packed = Packed::zeros(kind, 4, 256);
            for index in 0..expected.len() / BLOCK {
                packed.set_block(index / 8, index % 8, &blocks.get(index));
            }
            let mut row = vec![0.0; 256];
            for (at, expected) in expected.chunks(256).enumerate() {
                packed.row(at, &mut row);
                for (found, expected) in row.iter().zip(expected) {
                    assert!((found - expected).abs() <= tolerance, "{dtype:?} {found} {expected}");
                }
            }
        }
        assert!(Blocks::new(GgmlDType::Q5K, &[], PackedKind::Q8).is_none());
        assert_eq!(common(&[Q4_1, Q5_0]), PackedKind::Q8);
        assert_eq!(common(&[Q4_1, Q4_0]), PackedKind::Q4);
        assert_eq!(common(&[Q6K, Q6K]), PackedKind::Q6K);
        assert_eq!(common(&[Q4K, Q6K]), PackedKind::Q8);
    }

    fn common(dtypes: &[GgmlDType]) -> PackedKind {
        super::super::matrix::common_kind(dtypes.iter().map(|&dtype| kind(dtype)))
    }
}
