//! Products in blocks for AVX2 with fused multiply-add, after
//! [BLIS](https://doi.org/10.1145/2764454): a panel of 16 columns of the right matrix, packed, meets
//! six rows of the left one at a time, whose 96 sums stay in registers. A left matrix with contiguous
//! rows is read where it lies, only a transposed one is packed, so that little besides the products
//! passes through the caches.

use std::arch::x86_64::*;
use std::cell::RefCell;

use rayon::prelude::*;

use super::super::kernel::{Isa, isa};
use super::{Matrix, Output, Start};

/// Rows of a tile of sums.
const ROWS: usize = 6;
/// Rows of a tile that are read from one pointer.
const HALF: usize = ROWS / 2;
/// Columns of a tile: two registers.
const COLS: usize = 16;
/// Terms of a sum that are added before the next block: as many as the `gemm` crate adds on a CPU
/// with 32 KiB of first-level cache, which gives the same bits.
const DEPTH: usize = 512;
/// Values of a packed block of the right matrix, at most.
const RIGHT: usize = 64 << 10;
/// The same where the left matrix is packed, too: once per block of the right one, so that fewer are
/// better.
const WIDE_RIGHT: usize = 1 << 20;
/// Values of a packed block of the left matrix, at most.
const LEFT: usize = 48 << 10;
/// Values between two packed panels of the left matrix, so that equal places of the panels do not
/// share a set of the cache.
const GAP: usize = 16;
/// Multiplications from which a second thread is worth waking.
const PARALLEL: usize = 600_000;
/// Rows and columns of a thread's part are a multiple of it: whole tiles of either direction.
const PART: usize = 48;

thread_local! {
    /// Packed blocks of the left and the right matrix.
    static PACKED: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

impl Matrix<'_> {
    /// The part of `rows × cols` values from `(row, col)` on.
    fn part(self, row: usize, col: usize, rows: usize, cols: usize) -> Self {
        let data = &self.data[row * self.row_stride + col * self.col_stride..];
        Self { data, rows, cols, ..self }
    }
}

impl Start<'_> {
    /// That of the columns from `first` on.
    fn part(self, first: usize, cols: usize) -> Self {
        match self {
            Self::Row(row) => Start::Row(&row[first..first + cols]),
            other => other,
        }
    }
}

impl Output {
    /// # Safety
    /// `(row, col)` lies in the output.
    unsafe fn part(&self, row: usize, col: usize) -> Self {
        // SAFETY: the caller's promise.
        Self { start: unsafe { self.start.add(row * self.stride + col) }, ..*self }
    }
}

/// A tile of the output.
struct Tile {
    out: Output,
    /// At most [`COLS`].
    cols: usize,
    scale: f32,
    /// Where the values that the sums are added to begin, and how far apart their rows are: those of
    /// the output, or 0 for one row everywhere.
    start: Option<(*const f32, usize)>,
}

/// Whether this CPU can compute the product by blocks and is faster at it. Few rows do not repay
/// packing a right matrix that could be read where it lies, unless the sums are short, nor few columns
/// a transposed left one.
pub(super) fn suits(left: Matrix<'_>, right: Matrix<'_>) -> bool {
    let (rows, inner, cols) = (left.rows, left.cols, right.cols);
    let lies_well = |m: &Matrix<'_>| m.row_stride == 1 || m.col_stride == 1;
    let large = rows >= 6 && cols >= 8 && rows * cols > 256 && inner > 2;
    large
        && lies_well(&left)
        && lies_well(&right)
        && (right.col_stride != 1 || rows >= 32 || (rows >= 12 && inner <= 64))
        && (left.col_stride == 1 || cols >= 40)
        && isa() == Isa::Avx2
        && is_x86_feature_detected!("fma")
}

/// `out = start + scale · left · right`; the same bits for any number of threads.
///
/// # Safety
/// The product [`suits`]; the matrices lie in their slices and `start`'s row is as long as the
/// output's; the output can be written and nobody else uses it meanwhile.
pub(super) unsafe fn product(
    out: Output,
    left: Matrix<'_>,
    right: Matrix<'_>,
    scale: f32,
    start: Start<'_>,
    threads: usize,
) {
    let (rows, cols) = (left.rows, right.cols);
    let part = |out: Output, left: Matrix<'_>, right: Matrix<'_>, start: Start<'_>| {
        // SAFETY: the caller's promise; no two parts share a value of the output.
        unsafe { alone(out, left, right, scale, start) }
    };
    if threads == 1 || rows * cols * left.cols < PARALLEL {
        return part(out, left, right, start);
    }
    // Every value's sum is the same in whichever part it lies.
    if rows >= cols {
        let step = rows.div_ceil(threads).next_multiple_of(PART);
        (0..rows.div_ceil(step)).into_par_iter().for_each(|number| {
            let first = number * step;
            let left = left.part(first, 0, step.min(rows - first), left.cols);
            // SAFETY: `first` is below `rows`.
            part(unsafe { out.part(first, 0) }, left, right, start);
        });
    } else {
        let step = cols.div_ceil(threads).next_multiple_of(PART);
        (0..cols.div_ceil(step)).into_par_iter().for_each(|number| {
            let first = number * step;
            let right = right.part(0, first, right.rows, step.min(cols - first));
            // SAFETY: `first` is below `cols`.
            part(unsafe { out.part(0, first) }, left, right, start.part(first, right.cols));
        });
    }
}

/// [`product`] on the calling thread.
///
/// # Safety
/// As [`product`].
unsafe fn alone(out: Output, left: Matrix<'_>, right: Matrix<'_>, scale: f32, start: Start<'_>) {
    let (rows, inner, cols) = (left.rows, left.cols, right.cols);
    // the `gemm` crate cuts long sums evenly, those of small products not
    let depth = match rows.max(cols) <= 64 {
        true => inner.min(DEPTH),
        false => inner.div_ceil(inner.div_ceil(DEPTH)),
    };
    let right_values = if left.col_stride == 1 { RIGHT } else { WIDE_RIGHT };
    let width = (right_values / depth / COLS * COLS).max(COLS);
    let height = (LEFT / depth / ROWS * ROWS).max(ROWS);
    PACKED.with_borrow_mut(|(packed_left, packed_right)| {
        for col in (0..cols).step_by(width) {
            let width = width.min(cols - col);
            for at in (0..inner).step_by(depth) {
                let depth = depth.min(inner - at);
                let packed_right = at_least(packed_right, width.div_ceil(COLS) * depth * COLS);
                // SAFETY: the CPU has AVX2 (the caller's promise).
                unsafe { pack_right(right.part(at, col, depth, width), packed_right) };
                for row in (0..rows).step_by(height) {
                    let height = height.min(rows - row);
                    let left = left.part(row, at, height, depth);
                    let packed_left = match left.col_stride {
                        1 => &[],
                        _ => {
                            let packed = height.div_ceil(ROWS) * panel(depth);
                            let packed = at_least(packed_left, packed);
                            pack_left(left, packed);
                            &*packed
                        }
                    };
                    for (panel, right) in packed_right.chunks_exact(depth * COLS).enumerate() {
                        let first = col + panel * COLS;
                        // SAFETY: the tile begins in the output.
                        let out = unsafe { out.part(row, first) };
                        let start = match start {
                            Start::Row(values) if at == 0 => Some((values[first..].as_ptr(), 0)),
                            Start::Zero if at == 0 => None,
                            _ => Some((out.start.cast_const(), out.stride)),
                        };
                        let cols = COLS.min(width - panel * COLS);
                        let tile = Tile { out, cols, scale, start };
                        // SAFETY: the CPU has the instructions (the caller's promise). `left` holds
                        // `height` rows of `depth` values, either where they lie or packed, `right`
                        // a panel of as many rows; the tiles reach to the end of the output's rows
                        // and columns.
                        unsafe {
                            match (left.col_stride == 1, tile.cols > 8) {
                                (true, true) => column::<2, false>(tile, left, left.data, right),
                                (true, false) => column::<1, false>(tile, left, left.data, right),
                                (false, true) => column::<2, true>(tile, left, packed_left, right),
                                (false, false) => column::<1, true>(tile, left, packed_left, right),
                            }
                        }
                    }
                }
            }
        }
    });
}

/// The tiles of `left`'s rows under one packed panel `right`; `values` are `left`'s, either its own
/// slice or packed.
///
/// # Safety
/// As [`tile`], for all rows.
unsafe fn column<const REGISTERS: usize, const PACKED: bool>(
    mut tile: Tile,
    left: Matrix<'_>,
    values: &[f32],
    right: &[f32],
) {
    let depth = left.cols;
    let (step, stride) = match PACKED {
        true => (panel(depth), 1),
        false => (ROWS * left.row_stride, left.row_stride),
    };
    // SAFETY: the caller's promise; panel `n` of six rows begins at `n · step`.
    unsafe {
        let (mut values, right) = (values.as_ptr(), right.as_ptr());
        for _ in 0..left.rows / ROWS {
            self::tile::<ROWS, REGISTERS, PACKED>(&tile, depth, values, stride, right);
            values = values.wrapping_add(step);
            tile.out.start = tile.out.start.wrapping_add(ROWS * tile.out.stride);
            if let Some((start, stride)) = &mut tile.start {
                *start = start.wrapping_add(ROWS * *stride);
            }
        }
        match left.rows % ROWS {
            1 => self::tile::<1, REGISTERS, PACKED>(&tile, depth, values, stride, right),
            2 => self::tile::<2, REGISTERS, PACKED>(&tile, depth, values, stride, right),
            3 => self::tile::<3, REGISTERS, PACKED>(&tile, depth, values, stride, right),
            4 => self::tile::<4, REGISTERS, PACKED>(&tile, depth, values, stride, right),
            5 => self::tile::<5, REGISTERS, PACKED>(&tile, depth, values, stride, right),
            _ => {}
        }
    }
}

/// `H` rows of up to `8 · REGISTERS` columns: sums of `depth` products in order.
///
/// # Safety
/// The CPU has AVX2 and FMA. Row `i` of the left matrix has its value `k` at `i · stride + k`, or at
/// `i + k · ROWS` where it is packed; `right` holds `depth` rows of [`COLS`] values; `H` rows of the
/// tile's columns can be written, and read where it starts from.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const H: usize, const REGISTERS: usize, const PACKED: bool>(
    tile: &Tile,
    depth: usize,
    mut left: *const f32,
    stride: usize,
    mut right: *const f32,
) {
    let (stride, step) = if PACKED { (1, ROWS) } else { (stride, 1) };
    // SAFETY: the caller's promise; partial tiles go through `rest`, which holds a whole row.
    unsafe {
        let mut out = tile.out.start;
        for _ in 0..H {
            _mm_prefetch::<_MM_HINT_T0>(out.cast());
            _mm_prefetch::<_MM_HINT_T0>(out.wrapping_add(tile.cols - 1).cast());
            out = out.wrapping_add(tile.out.stride);
        }
        let mut sums = [[_mm256_setzero_ps(); REGISTERS]; H];
        // The fourth row and those after it, by a pointer of their own that the compiler cannot trace
        // back to the first: it would compute all rows anew in every round.
        let mut lower = std::hint::black_box(left.wrapping_add(HALF.wrapping_mul(stride)));
        macro_rules! add {
            ($k:expr) => {
                let row: [__m256; REGISTERS] =
                    std::array::from_fn(|r| _mm256_loadu_ps(right.add($k * COLS + 8 * r)));
                for (h, sums) in sums.iter_mut().enumerate() {
                    let (first, h) = if h < HALF { (left, h) } else { (lower, h - HALF) };
                    let value = &*first.add(h.wrapping_mul(stride) + $k * step);
                    let value = _mm256_broadcast_ss(value);
                    for (sum, &row) in sums.iter_mut().zip(&row) {
                        *sum = _mm256_fmadd_ps(value, row, *sum);
                    }
                }
            };
        }
        // two terms a round: with more of them the compiler runs out of registers
        for _ in 0..depth / 2 {
            add!(0);
            add!(1);
            left = left.add(2 * step);
            lower = lower.wrapping_add(2 * step);
            right = right.add(2 * COLS);
        }
        if depth % 2 == 1 {
            add!(0);
        }
        let scale = _mm256_set1_ps(tile.scale);
        let mut out = tile.out.start;
        let mut start = tile.start;
        for sums in &sums {
            if tile.cols == 8 * REGISTERS {
                for (r, &sum) in sums.iter().enumerate() {
                    let value = match start {
                        Some((start, _)) => {
                            _mm256_fmadd_ps(scale, sum, _mm256_loadu_ps(start.add(8 * r)))
                        }
                        None => _mm256_mul_ps(scale, sum),
                    };
                    _mm256_storeu_ps(out.add(8 * r), value);
                }
            } else {
                let mut rest = [0f32; COLS];
                for (r, &sum) in sums.iter().enumerate() {
                    _mm256_storeu_ps(rest.as_mut_ptr().add(8 * r), sum);
                }
                for (col, sum) in rest[..tile.cols].iter().enumerate() {
                    *out.add(col) = match start {
                        Some((start, _)) => tile.scale.mul_add(*sum, *start.add(col)),
                        None => tile.scale * sum,
                    };
                }
            }
            out = out.wrapping_add(tile.out.stride);
            if let Some((start, stride)) = &mut start {
                *start = start.wrapping_add(*stride);
            }
        }
    }
}

/// Values from one packed panel of the left matrix to the next.
fn panel(depth: usize) -> usize {
    depth * ROWS + GAP
}

/// Packs a left matrix with contiguous columns: panels of six rows, in each one column after another.
fn pack_left(m: Matrix<'_>, to: &mut [f32]) {
    let panel = panel(m.cols);
    let (whole, rest) = (m.rows / ROWS, m.rows % ROWS);
    for k in 0..m.cols {
        let column = &m.data[k * m.col_stride..][..m.rows];
        for (p, rows) in column.chunks_exact(ROWS).enumerate() {
            to[p * panel + k * ROWS..][..ROWS].copy_from_slice(rows);
        }
        if rest > 0 {
            to[whole * panel + k * ROWS..][..rest].copy_from_slice(&column[whole * ROWS..]);
        }
    }
}

/// Packs a right matrix: panels of 16 columns, in each one row after another; a last panel is filled
/// up with zeros.
#[target_feature(enable = "avx2")]
fn pack_right(m: Matrix<'_>, to: &mut [f32]) {
    for (p, to) in to.chunks_exact_mut(m.rows * COLS).enumerate() {
        let cols = COLS.min(m.cols - p * COLS);
        let part = m.part(0, p * COLS, m.rows, cols);
        if cols < COLS {
            to.fill(0.0);
        }
        if m.col_stride == 1 {
            for (k, to) in to.chunks_exact_mut(COLS).enumerate() {
                let row = &part.data[k * m.row_stride..];
                match row.first_chunk::<COLS>() {
                    // of a known length, so that it becomes two moves instead of a call
                    Some(row) if cols == COLS => to.copy_from_slice(row),
                    _ => to[..cols].copy_from_slice(&row[..cols]),
                }
            }
            continue;
        }
        // columns lie together: squares of eight are turned in registers
        let (whole_cols, whole) = (cols / 8 * 8, m.rows / 8 * 8);
        for col in (0..whole_cols).step_by(8) {
            for k in (0..whole).step_by(8) {
                transpose(
                    &part.data[col * m.col_stride + k..],
                    m.col_stride,
                    &mut to[k * COLS + col..],
                );
            }
        }
        for col in 0..cols {
            let first = if col < whole_cols { whole } else { 0 };
            for k in first..m.rows {
                to[k * COLS + col] = part.data[col * m.col_stride + k];
            }
        }
    }
}

/// Eight rows of eight values, `stride` apart, to eight rows [`COLS`] apart.
#[target_feature(enable = "avx2")]
fn transpose(from: &[f32], stride: usize, to: &mut [f32]) {
    let row = |i: usize| {
        let row = &from[i * stride..][..8];
        // SAFETY: the slice has eight values.
        unsafe { _mm256_loadu_ps(row.as_ptr()) }
    };
    let pairs = |a: __m256, b: __m256| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    // columns (0, 4), (1, 5), (2, 6), (3, 7) of four rows
    let quads = |i: usize| {
        let ((a, b), (c, d)) = (pairs(row(i), row(i + 1)), pairs(row(i + 2), row(i + 3)));
        [
            _mm256_shuffle_ps::<0x44>(a, c),
            _mm256_shuffle_ps::<0xee>(a, c),
            _mm256_shuffle_ps::<0x44>(b, d),
            _mm256_shuffle_ps::<0xee>(b, d),
        ]
    };
    let (upper, lower) = (quads(0), quads(4));
    for col in 0..4 {
        let low = _mm256_permute2f128_ps::<0x20>(upper[col], lower[col]);
        let high = _mm256_permute2f128_ps::<0x31>(upper[col], lower[col]);
        for (col, values) in [(col, low), (col + 4, high)] {
            let to = &mut to[col * COLS..][..8];
            // SAFETY: the slice has eight values.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), values) };
        }
    }
}

/// The first `len` values of a buffer that grows where it must; what they are is left open.
fn at_least(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
