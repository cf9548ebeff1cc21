//! What every fused operator stands on: the choice of the instruction set, outputs that are not
//! zero-filled, blocks over threads. Unsafe code of `ops` is here and in `product`.
//!
//! A kernel is a plain Rust loop over 16 accumulators, written once with [`simd!`] and compiled for
//! AVX-512, AVX2 and the baseline. The loops use no fused multiply-add and a fixed order of
//! summation, so all three give the same bits; the tests hold them to it. Blocks depend on the size
//! of the input only, so the number of threads does not change a result either.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

use rayon::prelude::*;

use crate::{Error, Result};

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// The target's baseline (SSE2 on x86-64).
    Scalar = 1,
    /// AVX2.
    Avx2 = 2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512 = 3,
}

impl Isa {
    /// Whether this CPU has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

/// 0 = not chosen yet, else an [`Isa`] that `is_available`.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// The instruction set in use: the best available one unless [`force_isa`] chose another.
pub fn isa() -> Isa {
    match CHOSEN.load(Ordering::Relaxed) {
        1 => Isa::Scalar,
        2 => Isa::Avx2,
        3 => Isa::Avx512,
        _ => {
            let best = [Isa::Avx512, Isa::Avx2]
                .into_iter()
                .find(|isa| isa.is_available())
                .unwrap_or(Isa::Scalar);
            CHOSEN.store(best as u8, Ordering::Relaxed);
            best
        }
    }
}

/// Uses `isa` in the whole process from now on (`None` = the best one again). Meant for tests and
/// measurements. Refused with [`Error::Usage`] if the CPU does not have it.
pub fn force_isa(isa: Option<Isa>) -> Result<()> {
    if let Some(isa) = isa
        && !isa.is_available()
    {
        return Err(Error::usage(format!("this CPU has no {isa:?}; force one that it has")));
    }
    CHOSEN.store(isa.map_or(0, |isa| isa as u8), Ordering::Relaxed);
    Ok(())
}

/// Defines a function whose body is compiled once per [`Isa`] and chosen at run time.
macro_rules! simd {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(unsafe_code, clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn generic($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { generic($($arg),*) }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { generic($($arg),*) }
                match $crate::tensor::ops::kernel::isa() {
                    // SAFETY: `isa` returns only what this CPU was found to have.
                    $crate::tensor::ops::kernel::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::tensor::ops::kernel::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::tensor::ops::kernel::Isa::Scalar => {}
                }
            }
            generic($($arg),*)
        }
    };
}
pub(crate) use simd;

/// A new buffer of `len` values that `fill` writes. `fill` must write every value before it reads
/// it; debug builds hand out NaN, so that a test sees a value that was forgotten.
pub(crate) fn filled(len: usize, fill: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut buffer: Vec<f32> = Vec::with_capacity(len);
    if cfg!(debug_assertions) {
        buffer.resize(len, f32::NAN);
        fill(&mut buffer);
        return buffer;
    }
    // SAFETY: the range is the allocation's own; `fill` writes before it reads (see above), any bit
    // pattern is an f32, and the length is set only once all values are written.
    unsafe {
        fill(std::slice::from_raw_parts_mut(buffer.as_mut_ptr(), len));
        buffer.set_len(len);
    }
    buffer
}

/// Elements of a block: enough to outweigh handing it to another thread.
const BLOCK: usize = 16 * 1024;
/// Most blocks of one call; bounds the partial sums of a reduction.
const MOST_BLOCKS: usize = 32;

/// Rows per block; a function of the shape alone.
fn block_rows(rows: usize, width: usize) -> usize {
    (BLOCK / width.max(1)).max(rows.div_ceil(MOST_BLOCKS)).max(1)
}

/// Runs `work` on every block of `rows` rows with its part of `out` (`out_width` values a row).
/// `width` is the work of a row in elements.
pub(crate) fn for_rows(
    rows: usize,
    width: usize,
    out: &mut [f32],
    out_width: usize,
    work: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    let step = block_rows(rows, width);
    if out_width == 0 || rows == 0 {
        return;
    }
    if rows <= step || rayon::current_num_threads() == 1 {
        return work(0..rows, out);
    }
    out.par_chunks_mut(step * out_width).enumerate().for_each(|(block, out)| {
        let first = block * step;
        work(first..(first + step).min(rows), out);
    });
}

/// [`for_rows`] into a new buffer of `rows × out_width`.
pub(crate) fn map_rows(
    rows: usize,
    width: usize,
    out_width: usize,
    work: impl Fn(Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    filled(rows * out_width, |out| for_rows(rows, width, out, out_width, work))
}

/// [`map_rows`] with a second output of `extra_width` values a row, above 0.
pub(crate) fn map_rows_with(
    rows: usize,
    width: usize,
    out_width: usize,
    extra_width: usize,
    work: impl Fn(Range<usize>, &mut [f32], &mut [f32]) + Sync,
) -> (Vec<f32>, Vec<f32>) {
    let step = block_rows(rows, width);
    let mut extra = vec![0f32; rows * extra_width];
    let out = filled(rows * out_width, |out| {
        if rows <= step || rayon::current_num_threads() == 1 {
            return work(0..rows, out, &mut extra);
        }
        let range = |block: usize| block * step..((block + 1) * step).min(rows);
        let extras = extra.par_chunks_mut(step * extra_width).enumerate();
        if out_width == 0 {
            extras.for_each(|(block, extra)| work(range(block), &mut [], extra));
        } else {
            extras
                .zip(out.par_chunks_mut(step * out_width))
                .for_each(|((block, extra), out)| work(range(block), out, extra));
        }
    });
    (out, extra)
}

/// Like [`map_rows`], and adds up `sums` values over all rows: `work` adds to its block's own sums,
/// the blocks are added in order.
pub(crate) fn map_rows_sum(
    rows: usize,
    width: usize,
    out_width: usize,
    sums: usize,
    work: impl Fn(Range<usize>, &mut [f32], &mut [f32]) + Sync,
) -> (Vec<f32>, Vec<f32>) {
    let step = block_rows(rows, width);
    let blocks = rows.div_ceil(step);
    let mut partial = vec![0f32; blocks.max(1) * sums];
    let out = filled(rows * out_width, |out| {
        let range = |block: usize| block * step..((block + 1) * step).min(rows);
        // chunks of 0 are refused by the standard library
        let chunk = (step * out_width).max(1);
        if blocks <= 1 || rayon::current_num_threads() == 1 {
            let mut outs = out.chunks_mut(chunk);
            let mut sums = partial.chunks_mut(sums.max(1));
            for block in 0..blocks {
                work(
                    range(block),
                    outs.next().unwrap_or_default(),
                    sums.next().unwrap_or_default(),
                );
            }
        } else if out_width == 0 {
            partial
                .par_chunks_mut(sums.max(1))
                .enumerate()
                .for_each(|(block, sums)| work(range(block), &mut [], sums));
        } else {
            out.par_chunks_mut(chunk)
                .zip(partial.par_chunks_mut(sums.max(1)))
                .enumerate()
                .for_each(|(block, (out, sums))| work(range(block), out, sums));
        }
    });
    let (total, rest) = partial.split_at_mut(sums);
    for block in rest.chunks_exact(sums.max(1)) {
        add(total, block);
    }
    partial.truncate(sums);
    (out, partial)
}

simd! {
    /// `total += part`.
    pub(crate) fn add(total: &mut [f32], part: &[f32]) {
        for (total, part) in total.iter_mut().zip(part) {
            *total += part;
        }
    }
}
