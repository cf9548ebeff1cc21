//! Block-quantised weights.
//!
//! Weights are cut into blocks of 32 along the inner dimension:
//!
//! | kind | a weight | parameters of a block | bits a weight | formats of GGUF |
//! |---|---|---|---|---|
//! | `Q4` | `scale · q + min`, q in 0..=15 | f16 scale and min | 5 | Q4_0, Q4_1 |
//! | `Q8` | `scale · q`, q in −128..=127 | f16 scale | 8.5 | Q8_0, Q5_0, Q4_0 |
//! | `Q4K` | `scale · q + min`, q in 0..=15 | f32 scale and min | 6 | Q4_K |
//! | `Q6K` | `scale · q`, q in −32..=31 | f32 scales of 16 weights each | 10 | Q6_K |
//!
//! These formats fit without loss; others are requantised to `Q8`.
//!
//! Rows are interleaved by 16: one 64-byte [`Line`] holds 4 neighbouring inputs of 16 rows, so
//! that a vector lane belongs to one row, no sum runs across lanes, and a block of 16 rows is one
//! stream in memory. The tail of the last block and the missing rows of the last group are zero.

use super::activations::Activations;
use super::tiles::{self, Params, Weights};
use super::{Isa, gemm::Columns};
use half::f16;
use rayon::prelude::*;

/// Weights or activations that share a scale.
pub(in super::super) const BLOCK: usize = 32;
/// Rows that are interleaved.
pub(in super::super) const GROUP: usize = 16;
/// Most tokens of one kernel call.
pub(super) const TILE: usize = 8;

/// How a packed weight is stored; see the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum PackedKind {
    Q4,
    Q8,
    Q4K,
    Q6K,
}

impl PackedKind {
    fn four_bits(self) -> bool {
        matches!(self, Self::Q4 | Self::Q4K)
    }

    /// Whether parameters are f32.
    fn full(self) -> bool {
        matches!(self, Self::Q4K | Self::Q6K)
    }

    /// Lines per block of 16 rows.
    fn lines(self) -> usize {
        if self.four_bits() { 4 } else { 8 }
    }

    /// Parameters per block.
    fn params(self) -> usize {
        if self == Self::Q8 { 1 } else { 2 }
    }
}

/// 32 weights of a row.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Block {
    /// Scale and min; in `Q6K` the scales of the two halves, in `Q8` the scale and nothing.
    pub(in super::super) params: [f32; 2],
    /// Signed in `Q8` and `Q6K`.
    pub(in super::super) quants: [u8; BLOCK],
}

/// Four inputs of 16 rows: byte i of lane r belongs to row r. With 4 bits line j holds the inputs
/// 4j..4j+4 in the low and 16+4j..16+4j+4 in the high halves of the bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u32; GROUP]);

/// A quantised weight matrix of `rows` outputs × `cols` inputs.
#[derive(Debug, Clone)]
pub(in super::super) struct Packed {
    kind: PackedKind,
    rows: usize,
    cols: usize,
    /// Blocks per row.
    blocks: usize,
    /// `[group][block][line]`.
    lines: Vec<Line>,
    /// `[group][block][parameter]`; empty where parameters are f32.
    halves: Vec<[f16; GROUP]>,
    /// `[group][block][parameter]`; empty where parameters are f16.
    floats: Vec<[f32; GROUP]>,
}

impl Packed {
    /// A matrix of zeros.
    pub(in super::super) fn zeros(kind: PackedKind, rows: usize, cols: usize) -> Self {
        let blocks = cols.div_ceil(BLOCK);
        let count = rows.div_ceil(GROUP) * blocks;
        let params = count * kind.params();
        let (halves, floats) = if kind.full() { (0, params) } else { (params, 0) };
        Self {
            kind,
            rows,
            cols,
            blocks,
            lines: vec![Line([0; GROUP]); count * kind.lines()],
            halves: vec![[f16::ZERO; GROUP]; halves],
            floats: vec![[0.0; GROUP]; floats],
        }
    }

    pub(in super::super) fn kind(&self) -> PackedKind {
        self.kind
    }

    pub(in super::super) fn bytes(&self) -> usize {
        self.lines.len() * 64 + (2 * self.halves.len() + 4 * self.floats.len()) * GROUP
    }

    /// The blocks `from..to`, counted over all groups.
    fn weights(&self, from: usize, to: usize) -> Weights<'_> {
        let (lines, params) = (self.kind.lines(), self.kind.params());
        let at = from * params..to * params;
        let params = if self.kind.full() {
            Params::Full(&self.floats[at])
        } else {
            Params::Half(&self.halves[at])
        };
        Weights { lines: &self.lines[from * lines..to * lines], params }
    }

    /// Sets one block of a row.
    pub(in super::super) fn set_block(&mut self, row: usize, block: usize, values: &Block) {
        assert!(row < self.rows && block < self.blocks);
        let (lane, at) = (row % GROUP, row / GROUP * self.blocks + block);
        let params = self.kind.params();
        for (i, &param) in values.params[..params].iter().enumerate() {
            if self.kind.full() {
                self.floats[at * params + i][lane] = param;
            } else {
                self.halves[at * params + i][lane] = f16::from_f32(param);
            }
        }
        let (lines, quants) = (self.kind.lines(), &values.quants);
        let out = &mut self.lines[at * lines..(at + 1) * lines];
        for (j, line) in out.iter_mut().enumerate() {
            let mut bytes =
                [quants[4 * j], quants[4 * j + 1], quants[4 * j + 2], quants[4 * j + 3]];
            if self.kind.four_bits() {
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = (*byte & 15) | quants[16 + 4 * j + i] << 4;
                }
            }
            line.0[lane] = u32::from_le_bytes(bytes);
        }
    }

    /// Quantises `values` as row `row` of a [`PackedKind::Q8`] matrix: scale = max |w| / 127.
    pub(in super::super) fn set_row(&mut self, row: usize, values: &[f32]) {
        assert!(values.len() == self.cols && self.kind == PackedKind::Q8);
        for (block, values) in values.chunks(BLOCK).enumerate() {
            let largest = values.iter().fold(0f32, |largest, v| largest.max(v.abs()));
            let scale = f16::from_f32(largest / 127.0).to_f32();
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            let mut quants = [0; BLOCK];
            for (q, v) in quants.iter_mut().zip(values) {
                *q = (v * inverse).round().clamp(-127.0, 127.0) as i8 as u8;
            }
            self.set_block(row, block, &Block { params: [scale, 0.0], quants });
        }
    }

    /// One row as f32.
    pub(in super::super) fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols);
        let (group, lane) = (row / GROUP, row % GROUP);
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let at = group * self.blocks + block;
            let Weights { lines, params } = self.weights(at, at + 1);
            let param = |i: usize| match params {
                Params::Half(params) => params[i][lane].to_f32(),
                Params::Full(params) => params[i][lane],
            };
            let second = if self.kind.params() == 2 { param(1) } else { 0.0 };
            for (i, out) in out.iter_mut().enumerate() {
                let byte = |line: usize| lines[line].0[lane].to_le_bytes()[i % 4];
                *out = if self.kind.four_bits() {
                    let byte = byte(i % 16 / 4);
                    f32::from(if i < 16 { byte & 15 } else { byte >> 4 }) * param(0) + second
                } else {
                    let high = self.kind == PackedKind::Q6K && i >= 16;
                    f32::from(byte(i / 4) as i8) * if high { second } else { param(0) }
                };
            }
        }
    }

    /// `rows` (a multiple of 16, from a multiple of 16) as f32, transposed: element (input k, row
    /// r) at `k · width + r`. Rows past the end are zero.
    pub(in super::super) fn unpack(&self, isa: Isa, first: usize, width: usize, out: &mut [f32]) {
        assert!(first.is_multiple_of(GROUP) && width.is_multiple_of(GROUP));
        assert!(out.len() >= self.blocks * BLOCK * width);
        let all = self.lines.len() / self.kind.lines() / self.blocks.max(1);
        let groups = (width / GROUP).min(all - first / GROUP);
        for group in 0..groups {
            for block in 0..self.blocks {
                let at = (first / GROUP + group) * self.blocks + block;
                let out = &mut out[block * BLOCK * width + group * GROUP..];
                let Weights { lines, params } = self.weights(at, at + 1);
                match self.kind {
                    PackedKind::Q4 | PackedKind::Q4K => {
                        unpack_q4(isa, lines, &params.get(0), &params.get(1), width, out);
                    }
                    PackedKind::Q8 => unpack_q8(isa, lines, &params.get(0), width, out),
                    PackedKind::Q6K => {
                        unpack_q8(isa, &lines[..4], &params.get(0), width, out);
                        unpack_q8(isa, &lines[4..], &params.get(1), width, &mut out[16 * width..]);
                    }
                }
            }
        }
    }

    /// `out[t][row] = x[t] · weights[row]` over int8 activations, `out` row-major with
    /// `out_stride` columns. The sums are the same for every number of threads.
    pub(in super::super) fn product(
        &self,
        isa: Isa,
        x: &Activations,
        out: &mut [f32],
        out_stride: usize,
        threads: usize,
    ) {
        assert!(isa <= Isa::detect(), "{isa:?} is not available on this machine");
        assert!(x.blocks == self.blocks, "activations of another width");
        let columns = Columns::new(out, x.count, out_stride, self.rows);
        let groups = self.rows.div_ceil(GROUP);
        // Few large parts: a part costs a thread switch, and all rows cost the same.
        let parts = if x.count == 1 { threads } else { 4 * threads }.clamp(1, groups.max(1));
        let run = |part: usize| {
            for group in groups * part / parts..groups * (part + 1) / parts {
                for first in (0..x.count).step_by(TILE) {
                    let count = TILE.min(x.count - first);
                    let mut sums = [[0f32; GROUP]; TILE];
                    let weights = self.weights(group * self.blocks, (group + 1) * self.blocks);
                    let four_bits = self.kind.four_bits();
                    tiles::tile(isa, four_bits, weights, x, first, count, &mut sums);
                    let width = GROUP.min(self.rows - group * GROUP);
                    for (t, sums) in sums[..count].iter().enumerate() {
                        // SAFETY: a group of rows belongs to one part, and no other thread
                        // writes its columns.
                        unsafe { columns.write(first + t, group * GROUP, &sums[..width]) };
                    }
                }
            }
        };
        if threads > 1 && parts > 1 {
            (0..parts).into_par_iter().with_max_len(1).for_each(run);
        } else {
            (0..parts).for_each(run);
        }
    }
}

super::rows::dispatched!(
    unpack_q8, unpack_q8_body,
    (lines: &[Line], scales: &[f32; GROUP], width: usize, out: &mut [f32])
);
super::rows::dispatched!(
    unpack_q4, unpack_q4_body,
    (lines: &[Line], scales: &[f32; GROUP], mins: &[f32; GROUP], width: usize, out: &mut [f32])
);

#[inline(always)]
fn unpack_q8_body<const FMA: bool>(
    lines: &[Line],
    scales: &[f32; GROUP],
    width: usize,
    out: &mut [f32],
) {
    let _ = FMA;
    for (j, line) in lines.iter().enumerate() {
        for i in 0..4 {
            let out = &mut out[(4 * j + i) * width..][..GROUP];
            for lane in 0..GROUP {
                let q = (line.0[lane] << (24 - 8 * i)) as i32 >> 24;
                out[lane] = q as f32 * scales[lane];
            }
        }
    }
}

#[inline(always)]
fn unpack_q4_body<const FMA: bool>(
    lines: &[Line],
    scales: &[f32; GROUP],
    mins: &[f32; GROUP],
    width: usize,
    out: &mut [f32],
) {
    let _ = FMA;
    for (j, line) in lines.iter().enumerate() {
        for i in 0..8 {
            let input = if i < 4 { 4 * j + i } else { 16 + 4 * j + i - 4 };
            let shift = if i < 4 { 8 * i } else { 8 * (i - 4) + 4 };
            let out = &mut out[input * width..][..GROUP];
            for lane in 0..GROUP {
                let q = (line.0[lane] >> shift & 15) as i32;
                out[lane] = q as f32 * scales[lane] + mins[lane];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [PackedKind; 4] =
        [PackedKind::Q4, PackedKind::Q8, PackedKind::Q4K, PackedKind::Q6K];

    fn noise(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next() * if next() > 0.9 { 20.0 } else { 1.0 }).collect()
    }

    fn packed(kind: PackedKind, rows: usize, cols: usize, seed: u64) -> Packed {
        let mut packed = Packed::zeros(kind, rows, cols);
        let values = noise(rows * cols, seed);
        for (row, values) in values.chunks_exact(cols).enumerate() {
            if kind == PackedKind::Q8 {
                packed.set_row(row, values);
                continue;
            }
            for (block, values) in values.chunks(BLOCK).enumerate() {
                let mut quants = [0; BLOCK];
                for (q, v) in quants.iter_mut().zip(values) {
                    *q = (v.abs() * 15.0) as u8 & 15;
                }
                if kind == PackedKind::Q6K {
                    quants.iter_mut().for_each(|q| *q = q.wrapping_mul(4).wrapping_sub(31));
                }
                packed.set_block(row, block, &Block { params: [0.1, -0.7], quants });
            }
        }
        packed
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn products_agree_on_every_instruction_set(
            rows in 1usize..70, cols in 1usize..200, count in 1usize..14, seed in any::<u64>(),
            kind in 0..KINDS.len(),
        ) {
            let kind = KINDS[kind];
            let weights = packed(kind, rows, cols, seed);
            let x = noise(count * cols, seed ^ 1);
            let mut dense = vec![0.0; rows * cols];
            for (row, out) in dense.chunks_exact_mut(cols).enumerate() {
                weights.row(row, out);
            }
            let mut reference: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                let mut rounded = Activations::default();
                rounded.set(isa, &x, cols, cols, count);
                let mut out = vec![f32::NAN; count * rows];
                weights.product(isa, &rounded, &mut out, rows, 1);
                let mut threaded = vec![f32::NAN; count * rows];
                weights.product(isa, &rounded, &mut threaded, rows, 3);
                prop_assert_eq!(&out, &threaded);
                let reference = reference.get_or_insert_with(|| out.clone());
                for t in 0..count {
                    let x = &x[t * cols..(t + 1) * cols];
                    let largest = x.iter().fold(0f32, |a, b| a.max(b.abs()));
                    for row in 0..rows {
                        let w = &dense[row * cols..(row + 1) * cols];
                        let size: f32 = w.iter().map(|w| w.abs()).sum();
                        let exact: f32 = w.iter().zip(x).map(|(a, b)| a * b).sum();
                        let found = out[t * rows + row];
                        // The padding of a row adds nothing; rounding moves x by 1/254.
                        prop_assert!((found - exact).abs() <= 1e-4 + size * largest / 250.0);
                        prop_assert!((found - reference[t * rows + row]).abs() <= 1e-5 * (1.0 + size * largest));
                    }
                }
            }
        }

        #[test]
        fn unpacking_gives_the_rows(
            rows in 1usize..70, cols in 1usize..100, seed in any::<u64>(), kind in 0..KINDS.len(),
        ) {
            let kind = KINDS[kind];
            let weights = packed(kind, rows, cols, seed);
            let mut row = vec![0.0; cols];
            for isa in Isa::available() {
                let mut panel = vec![f32::NAN; cols.next_multiple_of(BLOCK) * 48];
                for first in (0..rows).step_by(48) {
                    weights.unpack(isa, first, 48, &mut panel);
                    for r in first..rows.min(first + 48) {
                        weights.row(r, &mut row);
                        for (k, &value) in row.iter().enumerate() {
                            let found = panel[k * 48 + r - first];
                            prop_assert!((found - value).abs() <= 1e-6 * (1.0 + value.abs()));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn quantised_rows_are_within_half_a_step() {
        let values = noise(100, 5);
        let mut weights = Packed::zeros(PackedKind::Q8, 1, 100);
        weights.set_row(0, &values);
        let mut row = vec![0.0; 100];
        weights.row(0, &mut row);
        for (values, row) in values.chunks(BLOCK).zip(row.chunks(BLOCK)) {
            let step = values.iter().fold(0f32, |a, b| a.max(b.abs())) / 127.0;
            for (a, b) in values.iter().zip(row) {
                assert!((a - b).abs() <= 0.57 * step, "{a} {b} {step}");
            }
        }
    }
}
