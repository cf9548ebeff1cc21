//! f32 matrix products by panels of weights.

use rayon::prelude::*;
use std::cell::RefCell;
use std::marker::PhantomData;

use crate::tensor::ops::product::{Matrix, Start, Threads, gemm_into};

/// A row-major output matrix whose columns are filled by several threads.
pub(super) struct Columns<'a> {
    start: *mut f32,
    rows: usize,
    stride: usize,
    cols: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is to f32 values borrowed mutably for 'a; threads write through it only by
// the unsafe `write` and by gemm, whose callers keep the written places apart.
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    /// `rows` × `cols` values, `stride` from row to row.
    pub(super) fn new(out: &'a mut [f32], rows: usize, stride: usize, cols: usize) -> Self {
        assert!(rows == 0 || (cols <= stride && (rows - 1) * stride + cols <= out.len()));
        Self { start: out.as_mut_ptr(), rows, stride, cols, borrow: PhantomData }
    }

    /// Where column `col` of the first row lies.
    fn column(&self, col: usize) -> *mut f32 {
        assert!(col < self.cols);
        // In bounds by `new`: a column index is below the stride.
        self.start.wrapping_add(col)
    }

    /// Writes `values` into row `row` from column `col` on.
    ///
    /// # Safety
    /// No other thread may read or write these places at the same time.
    pub(super) unsafe fn write(&self, row: usize, col: usize, values: &[f32]) {
        assert!(row < self.rows && col + values.len() <= self.cols);
        // SAFETY: the assertion keeps the places inside the borrowed slice (see `new`); `values`
        // is another borrow, so the two do not overlap.
        unsafe {
            let to = self.start.add(row * self.stride + col);
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len());
        }
    }
}

thread_local! {
    /// Unpacked weights of the panel at hand.
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Weights of [`matmul_panels`].
pub(in super::super) enum Panels<'a> {
    /// Row-major f32.
    Dense(&'a [f32]),
    /// `unpack(first, panel)` writes `panel_width` rows from row `first` on, transposed: element
    /// (input k, row r) at `k · panel_width + r`, for `depth` inputs (at least the matrix's
    /// columns).
    Unpacked { depth: usize, unpack: &'a (dyn Fn(usize, &mut [f32]) + Sync) },
}

/// `out[t][r] = x[t] · weights[r]` for `count` rows of `x` (row-major, `cols` wide, `x_stride`
/// apart), `panel_width` rows of weights at a time. These panels are spread over the threads; they do
/// not depend on the number of threads, so neither do the sums.
#[allow(clippy::too_many_arguments)]
pub(in super::super) fn matmul_panels(
    (count, cols, rows): (usize, usize, usize),
    x: &[f32],
    x_stride: usize,
    out: &mut [f32],
    out_stride: usize,
    panel_width: usize,
    weights: &Panels<'_>,
    threads: usize,
) {
    if count == 0 || cols == 0 {
        return;
    }
    let x = Matrix::strided(x, count, cols, x_stride);
    let columns = Columns::new(out, count, out_stride, rows);
    let product = |first: usize, panel: Matrix<'_>| {
        let out = columns.column(first);
        // SAFETY: `Columns::new` found room for the panel's columns, which are those of `rows` from
        // `first` on; no other panel has them.
        unsafe { gemm_into(out, out_stride, x, panel, 1.0, Start::Zero, Threads::One) };
    };
    let run = |panel: usize| {
        let first = panel * panel_width;
        let width = panel_width.min(rows - first);
        match weights {
            Panels::Dense(weights) => {
                product(first, Matrix::new(&weights[first * cols..], width, cols).t());
            }
            Panels::Unpacked { depth, unpack } => PANEL.with_borrow_mut(|buffer| {
                buffer.resize(panel_width * depth, 0.0);
                unpack(first, buffer);
                product(first, Matrix::strided(buffer, cols, width, panel_width));
            }),
        }
    };
    let panels = rows.div_ceil(panel_width);
    if threads > 1 && panels > 1 {
        (0..panels).into_par_iter().with_max_len(1).for_each(run);
    } else {
        (0..panels).for_each(run);
    }
}
