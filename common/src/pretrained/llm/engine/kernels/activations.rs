//! Rows of activations, rounded to int8 by blocks.
//!
//! The rounding is llama.cpp's, so that greedy texts agree with its texts: Q8_0 and Q8_1 (blocks of
//! 32, scale and weighted sum as f16) before weights in blocks of 32, Q8_K (blocks of 256, scale as
//! f32) before Q4_K and Q6_K.

use super::Isa;
use super::blocks::BLOCK;
use half::f16;

/// Activations that share a scale before the weights of Q4_K and Q6_K.
const SUPER_BLOCK: usize = 8 * BLOCK;

/// Rows of activations, quantised to int8 by blocks.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Activations {
    pub(super) count: usize,
    /// Blocks of 32 per row.
    pub(super) blocks: usize,
    /// `[row][block · 32]`, four neighbours in a word.
    words: Vec<u32>,
    /// `[row][block]`.
    scales: Vec<f32>,
    /// Sum of the quantised values, `[row][block]`.
    sums: Vec<i32>,
    /// Scale · sum, what a weight's min is multiplied with; `[row][block]`.
    totals: Vec<f32>,
}

/// One row of [`Activations`].
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) words: &'a [u32],
    pub(super) scales: &'a [f32],
    pub(super) sums: &'a [i32],
    pub(super) totals: &'a [f32],
}

impl Activations {
    /// Quantises `count` rows of `cols` values, `stride` apart in `x`, by blocks of 32 or of 256;
    /// reuses the buffers.
    pub(in super::super) fn set(
        &mut self,
        isa: Isa,
        x: &[f32],
        cols: usize,
        stride: usize,
        count: usize,
        super_blocks: bool,
    ) {
        let blocks = cols.div_ceil(BLOCK);
        (self.count, self.blocks) = (count, blocks);
        self.words.resize(count * blocks * BLOCK / 4, 0);
        self.scales.resize(count * blocks, 0.0);
        self.sums.resize(count * blocks, 0);
        self.totals.resize(count * blocks, 0.0);
        for t in 0..count {
            let at = t * blocks..(t + 1) * blocks;
            quantise(
                isa,
                &x[t * stride..t * stride + cols],
                super_blocks,
                &mut self.words[at.start * BLOCK / 4..at.end * BLOCK / 4],
                &mut self.scales[at.clone()],
                &mut self.sums[at.clone()],
                &mut self.totals[at],
            );
        }
    }

    pub(super) fn row(&self, t: usize) -> Row<'_> {
        let at = t * self.blocks..(t + 1) * self.blocks;
        Row {
            words: &self.words[at.start * BLOCK / 4..at.end * BLOCK / 4],
            scales: &self.scales[at.clone()],
            sums: &self.sums[at.clone()],
            totals: &self.totals[at],
        }
    }
}

/// The nearest f16; a value beyond f16 stays.
fn half(value: f32) -> f32 {
    let rounded = f16::from_f32(value).to_f32();
    if rounded.is_finite() { rounded } else { value }
}

super::rows::dispatched!(
    quantise, quantise_body,
    (
        x: &[f32], super_blocks: bool, words: &mut [u32], scales: &mut [f32], sums: &mut [i32],
        totals: &mut [f32]
    )
);

#[inline(always)]
fn quantise_body<const FMA: bool>(
    x: &[f32],
    super_blocks: bool,
    words: &mut [u32],
    scales: &mut [f32],
    sums: &mut [i32],
    totals: &mut [f32],
) {
    let _ = FMA;
    let size = if super_blocks { SUPER_BLOCK } else { BLOCK };
    for (step, shared) in x.chunks(size).enumerate() {
        let mut largest = 0f32;
        for &v in shared {
            largest = if v.abs() > largest { v.abs() } else { largest };
        }
        let (mut scale, mut inverse) = (0.0, 0.0);
        if largest > 0.0 && super_blocks {
            // Q8_K makes the first of the largest −127
            let negative = shared.iter().find(|v| v.abs() == largest).is_some_and(|&v| v < 0.0);
            inverse = if negative { 127.0 / largest } else { -127.0 / largest };
            scale = 1.0 / inverse;
        } else if largest > 0.0 {
            (scale, inverse) = (largest / 127.0, 127.0 / largest);
        }
        for (block, x) in (step * size / BLOCK..).zip(shared.chunks(BLOCK)) {
            let mut values = [0f32; BLOCK];
            values[..x.len()].copy_from_slice(x);
            let mut sum = 0;
            for (word, values) in
                words[block * 8..block * 8 + 8].iter_mut().zip(values.as_chunks::<4>().0)
            {
                let q = values.map(|v| {
                    // Adding 1.5 · 2^23 rounds to an integer in the low bits, ties to even.
                    (v * inverse + 12_582_912.0).to_bits() as i8
                });
                sum += q.iter().map(|&q| i32::from(q)).sum::<i32>();
                *word = u32::from_le_bytes(q.map(|q| q as u8));
            }
            sums[block] = sum;
            let total = scale * sum as f32;
            // Q8_1 sums with the scale before its rounding.
            totals[block] = if super_blocks { total } else { half(total) };
            scales[block] = if super_blocks { scale } else { half(scale) };
        }
    }
}
