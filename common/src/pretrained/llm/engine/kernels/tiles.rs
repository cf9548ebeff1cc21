//! Products of one group of 16 rows of packed weights with a few rows of int8 activations.

use super::Isa;
use super::activations::Activations;
use super::blocks::{GROUP, Line, TILE};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// The blocks of one group of rows.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub(super) lines: &'a [Line],
    pub(super) params: Params<'a>,
}

/// Scales and mins of a group of rows, [`super::PackedKind::params`] per block.
#[derive(Clone, Copy)]
pub(super) enum Params<'a> {
    Half(&'a [[f16; GROUP]]),
    Full(&'a [[f32; GROUP]]),
}

impl Params<'_> {
    #[inline(always)]
    pub(super) fn get(self, at: usize) -> [f32; GROUP] {
        match self {
            Self::Half(params) => {
                let mut floats = [0.0; GROUP];
                params[at].convert_to_f32_slice(&mut floats);
                floats
            }
            Self::Full(params) => params[at],
        }
    }
}

/// The products of one group of rows with `count` ≤ [`TILE`] rows of activations.
pub(super) fn tile(
    isa: Isa,
    four_bits: bool,
    weights: Weights<'_>,
    x: &Activations,
    first: usize,
    count: usize,
    out: &mut [[f32; GROUP]; TILE],
) {
    match (four_bits, weights.params) {
        (true, Params::Half(_)) => tile_of::<true, false>(isa, weights, x, first, count, out),
        (false, Params::Half(_)) => tile_of::<false, false>(isa, weights, x, first, count, out),
        (true, Params::Full(_)) => tile_of::<true, true>(isa, weights, x, first, count, out),
        (false, Params::Full(_)) => tile_of::<false, true>(isa, weights, x, first, count, out),
    }
}

/// `FOUR`: 4 bits a weight, not 8. `FULL`: f32 parameters, not f16.
fn tile_of<const FOUR: bool, const FULL: bool>(
    isa: Isa,
    weights: Weights<'_>,
    x: &Activations,
    first: usize,
    count: usize,
    out: &mut [[f32; GROUP]; TILE],
) {
    // Products of `T` rows of activations at a time keep the weights in registers.
    macro_rules! run {
        ($kernel:ident, $($generics:tt)*) => {{
            let mut t = 0;
            while t + 8 <= count {
                // SAFETY: see the callers below.
                unsafe { $kernel::<8, $($generics)*>(weights, x, first + t, &mut out[t..t + 8]) };
                t += 8;
            }
            while t + 4 <= count {
                // SAFETY: as above.
                unsafe { $kernel::<4, $($generics)*>(weights, x, first + t, &mut out[t..t + 4]) };
                t += 4;
            }
            while t < count {
                // SAFETY: as above.
                unsafe { $kernel::<1, $($generics)*>(weights, x, first + t, &mut out[t..t + 1]) };
                t += 1;
            }
        }};
    }
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Portable => {}
        // `Packed::product` asserts that this machine has the instructions.
        Isa::Avx512 if !FULL => return run!(tile_avx512, FOUR),
        // The few matrices with f32 parameters have no wider kernel.
        Isa::Avx2 | Isa::Avx512 => return run!(tile_avx2, FOUR, FULL),
    }
    let _ = isa;
    for (t, out) in out[..count].iter_mut().enumerate() {
        tile_portable::<FOUR, FULL>(weights, x, first + t, out);
    }
}

/// Lines per block, and the parts of a block that have their own scale.
const fn layout(four: bool, full: bool) -> (usize, usize) {
    (if four { 4 } else { 8 }, if full && !four { 2 } else { 1 })
}

fn tile_portable<const FOUR: bool, const FULL: bool>(
    weights: Weights<'_>,
    x: &Activations,
    t: usize,
    out: &mut [f32; GROUP],
) {
    let x = x.row(t);
    let (lines, parts) = layout(FOUR, FULL);
    for (block, lines) in weights.lines.chunks_exact(lines).enumerate() {
        let words = &x.words[block * 8..block * 8 + 8];
        for (part, lines) in lines.chunks_exact(lines.len() / parts).enumerate() {
            let mut dot = [0i32; GROUP];
            for (j, line) in (part * lines.len()..).zip(lines) {
                let low = words[j].to_le_bytes();
                let high = if FOUR { words[j + 4].to_le_bytes() } else { low };
                for (dot, word) in dot.iter_mut().zip(line.0) {
                    let bytes = word.to_le_bytes();
                    for i in 0..4 {
                        if FOUR {
                            *dot += i32::from(bytes[i] & 15) * i32::from(low[i] as i8);
                            *dot += i32::from(bytes[i] >> 4) * i32::from(high[i] as i8);
                        } else {
                            *dot += i32::from(bytes[i] as i8) * i32::from(low[i] as i8);
                        }
                    }
                }
            }
            let per_block = if FOUR { 2 } else { parts };
            let scales = weights.params.get(block * per_block + part);
            for lane in 0..GROUP {
                out[lane] += dot[lane] as f32 * (scales[lane] * x.scales[block]);
            }
        }
        if FOUR {
            let mins = weights.params.get(block * 2 + 1);
            for lane in 0..GROUP {
                out[lane] += mins[lane] * x.totals[block];
            }
        }
    }
}

/// # Safety
/// The machine must have AVX-512 F, BW, VL and VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tile_avx512<const T: usize, const FOUR: bool>(
    weights: Weights<'_>,
    x: &Activations,
    first: usize,
    out: &mut [[f32; GROUP]],
) {
    use std::arch::x86_64::*;
    let params = match weights.params {
        Params::Half(params) => params,
        Params::Full(_) => &[],
    };
    let (lines, per_block) = (layout(FOUR, false).0, if FOUR { 2 } else { 1 });
    assert!(out.len() == T && x.blocks * per_block == params.len());
    let rows: [_; T] = std::array::from_fn(|t| x.row(first + t));
    let low_half = _mm512_set1_epi8(15);
    let offset = _mm512_set1_epi8(-128);
    let param = |at: usize| {
        // SAFETY: 16 half floats are 32 bytes.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(params[at].as_ptr().cast()) })
    };
    let mut total = [_mm512_setzero_ps(); T];
    for (block, lines) in weights.lines.chunks_exact(lines).enumerate() {
        // vpdpbusd multiplies unsigned by signed bytes, so 8-bit weights are shifted by 128.
        let mut dot: [__m512i; T] = std::array::from_fn(|t| {
            if FOUR {
                _mm512_setzero_si512()
            } else {
                _mm512_set1_epi32(-128 * rows[t].sums[block])
            }
        });
        for (j, line) in lines.iter().enumerate() {
            // SAFETY: a line is 64 aligned bytes.
            let line = unsafe { _mm512_load_si512(std::ptr::from_ref(line).cast()) };
            if FOUR {
                let low = _mm512_and_si512(line, low_half);
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(line), low_half);
                for t in 0..T {
                    let word = _mm512_set1_epi32(rows[t].words[block * 8 + j] as i32);
                    dot[t] = _mm512_dpbusd_epi32(dot[t], low, word);
                    let word = _mm512_set1_epi32(rows[t].words[block * 8 + 4 + j] as i32);
                    dot[t] = _mm512_dpbusd_epi32(dot[t], high, word);
                }
            } else {
                let shifted = _mm512_xor_si512(line, offset);
                for t in 0..T {
                    let word = _mm512_set1_epi32(rows[t].words[block * 8 + j] as i32);
                    dot[t] = _mm512_dpbusd_epi32(dot[t], shifted, word);
                }
            }
        }
        let scales = param(block * per_block);
        for t in 0..T {
            let scale = _mm512_mul_ps(scales, _mm512_set1_ps(rows[t].scales[block]));
            total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t]), scale, total[t]);
        }
        if FOUR {
            let mins = param(block * per_block + 1);
            for t in 0..T {
                let sum = _mm512_set1_ps(rows[t].totals[block]);
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
unsafe fn tile_avx2<const T: usize, const FOUR: bool, const FULL: bool>(
    weights: Weights<'_>,
    x: &Activations,
    first: usize,
    out: &mut [[f32; GROUP]],
) {
    use std::arch::x86_64::*;
    let (lines, parts) = layout(FOUR, FULL);
    let per_block = if FOUR { 2 } else { parts };
    let (halves, floats): (&[[f16; GROUP]], &[[f32; GROUP]]) = match weights.params {
        Params::Half(params) => (params, &[]),
        Params::Full(params) => (&[], params),
    };
    let params = if FULL { floats.len() } else { halves.len() };
    assert!(out.len() == T && x.blocks * per_block == params);
    let rows: [_; T] = std::array::from_fn(|t| x.row(first + t));
    let low_half = _mm256_set1_epi8(15);
    let ones = _mm256_set1_epi16(1);
    // 8 of the 16 rows at a time: two halves of T accumulators do not fit the registers.
    for half in 0..2 {
        let param = |at: usize| {
            if FULL {
                // SAFETY: the half that is read is 8 of the 16 floats.
                unsafe { _mm256_loadu_ps(floats[at].as_ptr().add(8 * half)) }
            } else {
                // SAFETY: the half that is read is 16 of the 32 bytes.
                _mm256_cvtph_ps(unsafe {
                    _mm_loadu_si128(halves[at].as_ptr().cast::<__m128i>().add(half))
                })
            }
        };
        let mut total = [_mm256_setzero_ps(); T];
        for (block, lines) in weights.lines.chunks_exact(lines).enumerate() {
            for (part, lines) in lines.chunks_exact(lines.len() / parts).enumerate() {
                let mut dot = [_mm256_setzero_si256(); T];
                for (j, line) in (block * 8 + part * lines.len()..).zip(lines) {
                    // SAFETY: `half` is 0 or 1, and a line is two aligned halves of 32 bytes.
                    let line =
                        unsafe { _mm256_load_si256(line.0.as_ptr().cast::<__m256i>().add(half)) };
                    if FOUR {
                        // At most 2 · 15 · 127 per pair: fits 16 bits.
                        let low = _mm256_and_si256(line, low_half);
                        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(line), low_half);
                        for t in 0..T {
                            let word = _mm256_set1_epi32(rows[t].words[j] as i32);
                            let pairs = _mm256_maddubs_epi16(low, word);
                            let word = _mm256_set1_epi32(rows[t].words[j + 4] as i32);
                            let high = _mm256_maddubs_epi16(high, word);
                            let pairs = _mm256_add_epi16(pairs, high);
                            dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(pairs, ones));
                        }
                    } else {
                        // |w| · (x with w's sign): at most 2 · 128 · 127 per pair, fits 16 bits.
                        let size = _mm256_abs_epi8(line);
                        for t in 0..T {
                            let word = _mm256_set1_epi32(rows[t].words[j] as i32);
                            let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(word, line));
                            dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(pairs, ones));
                        }
                    }
                }
                let scales = param(block * per_block + part);
                for t in 0..T {
                    let scale = _mm256_mul_ps(scales, _mm256_set1_ps(rows[t].scales[block]));
                    total[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t]), scale, total[t]);
                }
            }
            if FOUR {
                let mins = param(block * per_block + 1);
                for t in 0..T {
                    let sum = _mm256_set1_ps(rows[t].totals[block]);
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
