//! Block-quantised weights, int8 activations and their products.
//!
//! Weights and activations are cut into blocks of 32 along the inner dimension. A weight is
//! `scale · q` ([`PackedKind::Q8`], q in −128..=127) or `scale · q + min` ([`PackedKind::Q4`],
//! q in 0..=15) with one scale (and min) per row and block, stored in f16; the formats Q8_0, Q5_0,
//! Q4_0 and Q4_1 of GGUF fit without loss. An activation is `scale · q` with q in −127..=127.
//!
//! Rows are interleaved by 16: one 64-byte [`Line`] holds 4 neighbouring inputs of 16 rows, so
//! that a vector lane belongs to one row, no sum runs across lanes, and a block of 16 rows is one
//! stream in memory. The tail of the last block and the missing rows of the last group are zero.

use super::{Isa, gemm::Columns};
use half::f16;
use rayon::prelude::*;

/// Weights or activations that share a scale.
pub(in super::super) const BLOCK: usize = 32;
/// Rows that are interleaved.
pub(in super::super) const GROUP: usize = 16;
/// Most tokens of one kernel call.
const TILE: usize = 8;

/// How a packed weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum PackedKind {
    /// 4 bits, scale and min: 5 bits a weight.
    Q4,
    /// 8 bits and a scale: 8.5 bits a weight.
    Q8,
}

impl PackedKind {
    /// Lines per block of 16 rows.
    fn lines(self) -> usize {
        match self {
            Self::Q4 => 4,
            Self::Q8 => 8,
        }
    }
}

/// Four inputs of 16 rows: byte i of lane r belongs to row r. In [`PackedKind::Q4`] line j holds
/// the inputs 4j..4j+4 in the low and 16+4j..16+4j+4 in the high halves of the bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; GROUP]);

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
    /// `[group][block]`, f16 bits.
    scales: Vec<[u16; GROUP]>,
    /// Like `scales`; empty for [`PackedKind::Q8`].
    mins: Vec<[u16; GROUP]>,
}

impl Packed {
    /// A matrix of zeros.
    pub(in super::super) fn zeros(kind: PackedKind, rows: usize, cols: usize) -> Self {
        let blocks = cols.div_ceil(BLOCK);
        let count = rows.div_ceil(GROUP) * blocks;
        let mins = if kind == PackedKind::Q4 { count } else { 0 };
        Self {
            kind,
            rows,
            cols,
            blocks,
            lines: vec![Line([0; GROUP]); count * kind.lines()],
            scales: vec![[0; GROUP]; count],
            mins: vec![[0; GROUP]; mins],
        }
    }

    pub(in super::super) fn kind(&self) -> PackedKind {
        self.kind
    }

    pub(in super::super) fn bytes(&self) -> usize {
        self.lines.len() * 64 + (self.scales.len() + self.mins.len()) * 2 * GROUP
    }

    /// Sets one block of a row; `quants` are the low 8 (or 4) bits of each byte and `min` must be
    /// 0 for [`PackedKind::Q8`].
    pub(in super::super) fn set_block(
        &mut self,
        row: usize,
        block: usize,
        scale: f16,
        min: f16,
        quants: &[u8; BLOCK],
    ) {
        assert!(row < self.rows && block < self.blocks);
        let (lane, at) = (row % GROUP, row / GROUP * self.blocks + block);
        self.scales[at][lane] = scale.to_bits();
        let lines = self.kind.lines();
        let out = &mut self.lines[at * lines..(at + 1) * lines];
        for (j, line) in out.iter_mut().enumerate() {
            let mut bytes =
                [quants[4 * j], quants[4 * j + 1], quants[4 * j + 2], quants[4 * j + 3]];
            if self.kind == PackedKind::Q4 {
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = (*byte & 15) | quants[16 + 4 * j + i] << 4;
                }
            }
            line.0[lane] = u32::from_le_bytes(bytes);
        }
        if self.kind == PackedKind::Q4 {
            self.mins[at][lane] = min.to_bits();
        }
    }

    /// Quantises `values` as row `row` of a [`PackedKind::Q8`] matrix: scale = max |w| / 127.
    pub(in super::super) fn set_row(&mut self, row: usize, values: &[f32]) {
        assert!(values.len() == self.cols && self.kind == PackedKind::Q8);
        for (block, values) in values.chunks(BLOCK).enumerate() {
            let largest = values.iter().fold(0f32, |largest, v| largest.max(v.abs()));
            let scale = f16::from_f32(largest / 127.0);
            let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
            let mut quants = [0; BLOCK];
            for (q, v) in quants.iter_mut().zip(values) {
                *q = (v * inverse).round().clamp(-127.0, 127.0) as i8 as u8;
            }
            self.set_block(row, block, scale, f16::ZERO, &quants);
        }
    }

    /// One row as f32.
    pub(in super::super) fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols);
        let (group, lane) = (row / GROUP, row % GROUP);
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let at = group * self.blocks + block;
            let scale = f16::from_bits(self.scales[at][lane]).to_f32();
            let min = self.mins.get(at).map_or(0.0, |mins| f16::from_bits(mins[lane]).to_f32());
            let lines = &self.lines[at * self.kind.lines()..];
            for (i, out) in out.iter_mut().enumerate() {
                let q = match self.kind {
                    PackedKind::Q8 => f32::from(lines[i / 4].0[lane].to_le_bytes()[i % 4] as i8),
                    PackedKind::Q4 => {
                        let byte = lines[i % 16 / 4].0[lane].to_le_bytes()[i % 4];
                        f32::from(if i < 16 { byte & 15 } else { byte >> 4 })
                    }
                };
                *out = q * scale + min;
            }
        }
    }

    /// `rows` (a multiple of 16, from a multiple of 16) as f32, transposed: element (input k, row
    /// r) at `k · width + r`. Rows past the end are zero.
    pub(in super::super) fn unpack(&self, isa: Isa, first: usize, width: usize, out: &mut [f32]) {
        assert!(first.is_multiple_of(GROUP) && width.is_multiple_of(GROUP));
        assert!(out.len() >= self.blocks * BLOCK * width);
        let groups = (width / GROUP).min(self.scales.len() / self.blocks.max(1) - first / GROUP);
        for group in 0..groups {
            for block in 0..self.blocks {
                let at = (first / GROUP + group) * self.blocks + block;
                let out = &mut out[block * BLOCK * width + group * GROUP..];
                let lines = &self.lines[at * self.kind.lines()..(at + 1) * self.kind.lines()];
                match self.kind {
                    PackedKind::Q8 => unpack_q8(isa, lines, &self.scales[at], width, out),
                    PackedKind::Q4 => {
                        unpack_q4(isa, lines, &self.scales[at], &self.mins[at], width, out);
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
                    self.tile(isa, group, x, first, count, &mut sums);
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

    fn tile(
        &self,
        isa: Isa,
        group: usize,
        x: &Activations,
        first: usize,
        count: usize,
        out: &mut [[f32; GROUP]; TILE],
    ) {
        let range = group * self.blocks..(group + 1) * self.blocks;
        let lines = self.kind.lines();
        let weights = Weights {
            lines: &self.lines[range.start * lines..range.end * lines],
            scales: &self.scales[range.clone()],
            mins: if self.kind == PackedKind::Q4 { &self.mins[range] } else { &[] },
        };
        match self.kind {
            PackedKind::Q4 => tile_of::<true>(isa, weights, x, first, count, out),
            PackedKind::Q8 => tile_of::<false>(isa, weights, x, first, count, out),
        }
    }
}

/// The blocks of one group of rows.
#[derive(Clone, Copy)]
struct Weights<'a> {
    lines: &'a [Line],
    scales: &'a [[u16; GROUP]],
    mins: &'a [[u16; GROUP]],
}

/// Rows of activations, quantised to int8 by blocks.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Activations {
    count: usize,
    blocks: usize,
    /// `[row][block · 32]`, four neighbours in a word.
    words: Vec<u32>,
    /// `[row][block]`.
    scales: Vec<f32>,
    /// Sum of the quantised values, `[row][block]`.
    sums: Vec<i32>,
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
        for t in 0..count {
            let at = t * blocks..(t + 1) * blocks;
            quantise(
                isa,
                &x[t * stride..t * stride + cols],
                &mut self.words[at.start * BLOCK / 4..at.end * BLOCK / 4],
                &mut self.scales[at.clone()],
                &mut self.sums[at],
            );
        }
    }

    fn row(&self, t: usize) -> (&[u32], &[f32], &[i32]) {
        let at = t * self.blocks..(t + 1) * self.blocks;
        (
            &self.words[at.start * BLOCK / 4..at.end * BLOCK / 4],
            &self.scales[at.clone()],
            &self.sums[at],
        )
    }
}

super::rows::dispatched!(
    quantise, quantise_body,
    (x: &[f32], words: &mut [u32], scales: &mut [f32], sums: &mut [i32])
);
super::rows::dispatched!(
    unpack_q8, unpack_q8_body,
    (lines: &[Line], scales: &[u16; GROUP], width: usize, out: &mut [f32])
);
super::rows::dispatched!(
    unpack_q4, unpack_q4_body,
    (lines: &[Line], scales: &[u16; GROUP], mins: &[u16; GROUP], width: usize, out: &mut [f32])
);

#[inline(always)]
fn quantise_body<const FMA: bool>(
    x: &[f32],
    words: &mut [u32],
    scales: &mut [f32],
    sums: &mut [i32],
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
    }
}

#[inline(always)]
fn floats(bits: &[u16; GROUP]) -> [f32; GROUP] {
    bits.map(|bits| f16::from_bits(bits).to_f32())
}

#[inline(always)]
fn unpack_q8_body<const FMA: bool>(
    lines: &[Line],
    scales: &[u16; GROUP],
    width: usize,
    out: &mut [f32],
) {
    let _ = FMA;
    let scales = floats(scales);
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
    scales: &[u16; GROUP],
    mins: &[u16; GROUP],
    width: usize,
    out: &mut [f32],
) {
    let _ = FMA;
    let (scales, mins) = (floats(scales), floats(mins));
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

/// The products of one group of rows with `count` ≤ [`TILE`] rows of activations.
fn tile_of<const Q4: bool>(
    isa: Isa,
    weights: Weights<'_>,
    x: &Activations,
    first: usize,
    count: usize,
    out: &mut [[f32; GROUP]; TILE],
) {
    // Products of `T` rows of activations at a time keep the weights in registers.
    macro_rules! run {
        ($kernel:ident) => {{
            let mut t = 0;
            while t + 8 <= count {
                // SAFETY: see the callers below.
                unsafe { $kernel::<8, Q4>(weights, x, first + t, &mut out[t..t + 8]) };
                t += 8;
            }
            while t + 4 <= count {
                // SAFETY: as above.
                unsafe { $kernel::<4, Q4>(weights, x, first + t, &mut out[t..t + 4]) };
                t += 4;
            }
            while t < count {
                // SAFETY: as above.
                unsafe { $kernel::<1, Q4>(weights, x, first + t, &mut out[t..t + 1]) };
                t += 1;
            }
        }};
    }
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Portable => {}
        // `Packed::product` asserts that this machine has the instructions.
        Isa::Avx2 => return run!(tile_avx2),
        Isa::Avx512 => return run!(tile_avx512),
    }
    let _ = isa;
    for (t, out) in out[..count].iter_mut().enumerate() {
        tile_portable::<Q4>(weights, x, first + t, out);
    }
}

fn tile_portable<const Q4: bool>(
    weights: Weights<'_>,
    x: &Activations,
    t: usize,
    out: &mut [f32; GROUP],
) {
    let (words, scales, sums) = x.row(t);
    let lines = if Q4 { 4 } else { 8 };
    for (block, weight_scales) in weights.scales.iter().enumerate() {
        let mut dot = [0i32; GROUP];
        let words = &words[block * 8..block * 8 + 8];
        for (j, line) in weights.lines[block * lines..(block + 1) * lines].iter().enumerate() {
            let low = words[j].to_le_bytes();
            let high = if Q4 { words[j + 4].to_le_bytes() } else { low };
            for (dot, word) in dot.iter_mut().zip(line.0) {
                let bytes = word.to_le_bytes();
                for i in 0..4 {
                    if Q4 {
                        *dot += i32::from(bytes[i] & 15) * i32::from(low[i] as i8);
                        *dot += i32::from(bytes[i] >> 4) * i32::from(high[i] as i8);
                    } else {
                        *dot += i32::from(bytes[i] as i8) * i32::from(low[i] as i8);
                    }
                }
            }
        }
        let weight_scales = floats(weight_scales);
        for lane in 0..GROUP {
            out[lane] += dot[lane] as f32 * (weight_scales[lane] * scales[block]);
        }
        if Q4 {
            let mins = floats(&weights.mins[block]);
            let sum = scales[block] * sums[block] as f32;
            for lane in 0..GROUP {
                out[lane] += mins[lane] * sum;
            }
        }
    }
}

/// # Safety
/// The machine must have AVX-512 F, BW, VL and VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tile_avx512<const T: usize, const Q4: bool>(
    weights: Weights<'_>,
    x: &Activations,
    first: usize,
    out: &mut [[f32; GROUP]],
) {
    use std::arch::x86_64::*;
    assert!(out.len() == T && x.blocks == weights.scales.len());
    let rows: [_; T] = std::array::from_fn(|t| x.row(first + t));
    let lines = if Q4 { 4 } else { 8 };
    let low_half = _mm512_set1_epi8(15);
    let offset = _mm512_set1_epi8(-128);
    let mut total = [_mm512_setzero_ps(); T];
    for (block, lines) in weights.lines.chunks_exact(lines).enumerate() {
        // vpdpbusd multiplies unsigned by signed bytes, so 8-bit weights are shifted by 128.
        let mut dot: [__m512i; T] = std::array::from_fn(|t| {
            if Q4 { _mm512_setzero_si512() } else { _mm512_set1_epi32(-128 * rows[t].2[block]) }
        });
        for (j, line) in lines.iter().enumerate() {
            // SAFETY: a line is 64 aligned bytes.
            let line = unsafe { _mm512_load_si512(std::ptr::from_ref(line).cast()) };
            if Q4 {
                let low = _mm512_and_si512(line, low_half);
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(line), low_half);
                for t in 0..T {
                    let word = _mm512_set1_epi32(rows[t].0[block * 8 + j] as i32);
                    dot[t] = _mm512_dpbusd_epi32(dot[t], low, word);
                    let word = _mm512_set1_epi32(rows[t].0[block * 8 + 4 + j] as i32);
                    dot[t] = _mm512_dpbusd_epi32(dot[t], high, word);
                }
            } else {
                let shifted = _mm512_xor_si512(line, offset);
                for t in 0..T {
                    let word = _mm512_set1_epi32(rows[t].0[block * 8 + j] as i32);
                    dot[t] = _mm512_dpbusd_epi32(dot[t], shifted, word);
                }
            }
        }
        let half_floats = |bits: &[u16; GROUP]| {
            // SAFETY: 16 half floats are 32 bytes.
            _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bits.as_ptr().cast()) })
        };
        let scales = half_floats(&weights.scales[block]);
        for t in 0..T {
            let scale = _mm512_mul_ps(scales, _mm512_set1_ps(rows[t].1[block]));
            total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t]), scale, total[t]);
        }
        if Q4 {
            let mins = half_floats(&weights.mins[block]);
            for t in 0..T {
                let sum = _mm512_set1_ps(rows[t].1[block] * rows[t].2[block] as f32);
                total[t] = _mm512_fmadd_ps(mins, sum, total[t]);
            }
        }
    }
    for (out, total) in out.iter_mut().zip(total) {
        // SAFETY: 16 floats are 64 bytes.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), total) };
    }
}

/// # Safety
/// The machine must have AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_avx2<const T: usize, const Q4: bool>(
    weights: Weights<'_>,
    x: &Activations,
    first: usize,
    out: &mut [[f32; GROUP]],
) {
    use std::arch::x86_64::*;
    assert!(out.len() == T && x.blocks == weights.scales.len());
    let rows: [_; T] = std::array::from_fn(|t| x.row(first + t));
    let lines = if Q4 { 4 } else { 8 };
    let low_half = _mm256_set1_epi8(15);
    let ones = _mm256_set1_epi16(1);
    // 8 of the 16 rows at a time: two halves of T accumulators do not fit the registers.
    for half in 0..2 {
        let mut total = [_mm256_setzero_ps(); T];
        for (block, lines) in weights.lines.chunks_exact(lines).enumerate() {
            let mut dot = [_mm256_setzero_si256(); T];
            for (j, line) in lines.iter().enumerate() {
                // SAFETY: `half` is 0 or 1, and a line is two aligned halves of 32 bytes.
                let line =
                    unsafe { _mm256_load_si256(line.0.as_ptr().cast::<__m256i>().add(half)) };
                if Q4 {
                    // At most 2 · 15 · 127 per pair: fits 16 bits.
                    let low = _mm256_and_si256(line, low_half);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(line), low_half);
                    for t in 0..T {
                        let word = _mm256_set1_epi32(rows[t].0[block * 8 + j] as i32);
                        let pairs = _mm256_maddubs_epi16(low, word);
                        let word = _mm256_set1_epi32(rows[t].0[block * 8 + 4 + j] as i32);
                        let pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(high, word));
                        dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(pairs, ones));
                    }
                } else {
                    // |w| · (x with w's sign): at most 2 · 128 · 127 per pair, fits 16 bits.
                    let size = _mm256_abs_epi8(line);
                    for t in 0..T {
                        let word = _mm256_set1_epi32(rows[t].0[block * 8 + j] as i32);
                        let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(word, line));
                        dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(pairs, ones));
                    }
                }
            }
            let half_floats = |bits: &[u16; GROUP]| {
                // SAFETY: the half that is read is 16 of the 32 bytes.
                _mm256_cvtph_ps(unsafe {
                    _mm_loadu_si128(bits.as_ptr().cast::<__m128i>().add(half))
                })
            };
            let scales = half_floats(&weights.scales[block]);
            for t in 0..T {
                let scale = _mm256_mul_ps(scales, _mm256_set1_ps(rows[t].1[block]));
                total[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t]), scale, total[t]);
            }
            if Q4 {
                let mins = half_floats(&weights.mins[block]);
                for t in 0..T {
                    let sum = _mm256_set1_ps(rows[t].1[block] * rows[t].2[block] as f32);
                    total[t] = _mm256_fmadd_ps(mins, sum, total[t]);
                }
            }
        }
        for (out, total) in out.iter_mut().zip(total) {
            // SAFETY: `half` is 0 or 1, and a row of `out` is two halves of 8 floats.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8 * half), total) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
                packed.set_block(row, block, f16::from_f32(0.1), f16::from_f32(-0.7), &quants);
            }
        }
        packed
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn products_agree_on_every_instruction_set(
            rows in 1usize..70, cols in 1usize..200, count in 1usize..14, seed in any::<u64>(),
            four_bits in any::<bool>(),
        ) {
            let kind = if four_bits { PackedKind::Q4 } else { PackedKind::Q8 };
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
            rows in 1usize..70, cols in 1usize..100, seed in any::<u64>(), four_bits in any::<bool>(),
        ) {
            let kind = if four_bits { PackedKind::Q4 } else { PackedKind::Q8 };
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
