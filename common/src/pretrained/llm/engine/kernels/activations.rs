//! Rows of activations, rounded to int8 by blocks: `scale · q`, q in −127..=127.

use super::Isa;
use super::blocks::BLOCK;

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
    /// Quantises `count` rows of `cols` values, `stride` apart in `x`; reuses the buffers.
    pub(in super::super) fn set(
        &mut self,
        isa: Isa,
        x: &[f32],
        cols: usize,
        stride: usize,
        count: usize,
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

super::rows::dispatched!(
    quantise, quantise_body,
    (x: &[f32], words: &mut [u32], scales: &mut [f32], sums: &mut [i32], totals: &mut [f32])
);

#[inline(always)]
fn quantise_body<const FMA: bool>(
    x: &[f32],
    words: &mut [u32],
    scales: &mut [f32],
    sums: &mut [i32],
    totals: &mut [f32],
) {
    let _ = FMA;
    for (block, x) in x.chunks(BLOCK).enumerate() {
        let mut values = [0f32; BLOCK];
        values[..x.len()].copy_from_slice(x);
        let mut largest = 0f32;
        for v in values {
            largest = if v.abs() > largest { v.abs() } else { largest };
        }
        let scale = largest / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
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
        scales[block] = scale;
        sums[block] = sum;
        totals[block] = scale * sum as f32;
    }
}
