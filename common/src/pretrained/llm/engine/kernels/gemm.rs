//! f32 matrix products over the `gemm` crate.

use rayon::prelude::*;
use std::cell::RefCell;
use std::marker::PhantomData;

/// A read-only matrix of `rows` × `cols` elements inside a slice, `row_stride` elements from row
/// to row and `col_stride` from column to column.
#[derive(Clone, Copy)]
pub(in super::super) struct Strided<'a> {
    pub(in super::super) data: &'a [f32],
    pub(in super::super) row_stride: usize,
    pub(in super::super) col_stride: usize,
}

impl<'a> Strided<'a> {
    /// Row-major with `stride` elements from row to row.
    pub(in super::super) fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, row_stride: stride, col_stride: 1 }
    }

    /// The transpose; no data moves.
    pub(in super::super) fn transposed(self) -> Self {
        Self { data: self.data, row_stride: self.col_stride, col_stride: self.row_stride }
    }

    fn assert_holds(&self, rows: usize, cols: usize) {
        let last = (rows - 1) * self.row_stride + (cols - 1) * self.col_stride;
        assert!(last < self.data.len(), "matrix of {rows} x {cols} does not fit its slice");
    }
}

/// `out = scale · left · right` (or `out += …` with `accumulate`) for `left` of `m` × `k`, `right`
/// of `k` × `n` and `out` row-major with `out_stride` elements from row to row.
/// Runs on the calling thread.
#[allow(clippy::too_many_arguments)]
pub(in super::super) fn matmul(
    (m, k, n): (usize, usize, usize),
    left: Strided<'_>,
    right: Strided<'_>,
    out: &mut [f32],
    out_stride: usize,
    scale: f32,
    accumulate: bool,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    left.assert_holds(m, k);
    right.assert_holds(k, n);
    assert!(out_stride >= n && (m - 1) * out_stride + n <= out.len(), "output does not fit");
    // SAFETY: the three assertions above keep every index that gemm forms inside its slice, `out`
    // is borrowed mutably and overlaps neither input; strides of slices fit in isize.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            accumulate,
            left.data.as_ptr(),
            left.col_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.col_stride as isize,
            right.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

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
    /// `unpack(first, panel)` writes `width` rows from row `first` on, transposed: element
    /// (input k, row r) at `k · width + r`, for `depth` inputs (at least the matrix's columns).
    Unpacked { depth: usize, unpack: &'a (dyn Fn(usize, &mut [f32]) + Sync) },
}

/// `out[t][r] = x[t] · weights[r]` for `count` rows of `x` (row-major, `cols` wide, `x_stride`
/// apart), `width` rows of weights at a time. These panels are spread over the threads; they do
/// not depend on the number of threads, so neither do the sums.
#[allow(clippy::too_many_arguments)]
pub(in super::super) fn matmul_panels(
    (count, cols, rows): (usize, usize, usize),
    x: &[f32],
    x_stride: usize,
    out: &mut [f32],
    out_stride: usize,
    width: usize,
    weights: &Panels<'_>,
    threads: usize,
) {
    if count == 0 || cols == 0 {
        return;
    }
    Strided::rows(x, x_stride).assert_holds(count, cols);
    let columns = Columns::new(out, count, out_stride, rows);
    let product = |first: usize, panel: Strided<'_>| {
        let n = width.min(rows - first);
        panel.assert_holds(cols, n);
        // SAFETY: `assert_holds` keeps the inputs inside their slices and `Columns::new` the
        // output; the columns first..first + n belong to this panel alone.
        unsafe {
            gemm::gemm(
                count,
                n,
                cols,
                columns.column(first),
                1,
                out_stride as isize,
                false,
                x.as_ptr(),
                1,
                x_stride as isize,
                panel.data.as_ptr(),
                panel.col_stride as isize,
                panel.row_stride as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    };
    let run = |panel: usize| {
        let first = panel * width;
        match weights {
            Panels::Dense(weights) => {
                product(first, Strided::rows(&weights[first * cols..], cols).transposed());
            }
            Panels::Unpacked { depth, unpack } => PANEL.with_borrow_mut(|buffer| {
                buffer.resize(width * depth, 0.0);
                unpack(first, buffer);
                product(first, Strided::rows(buffer, width));
            }),
        }
    };
    let panels = rows.div_ceil(width);
    if threads > 1 && panels > 1 {
        (0..panels).into_par_iter().with_max_len(1).for_each(run);
    } else {
        (0..panels).for_each(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_transpose_and_accumulate() {
        let left = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // 2 x 3
        let right = [1.0, 0.0, 2.0, 1.0, -1.0, 1.0]; // 2 x 3, used transposed: 3 x 2
        let mut out = [10.0; 6]; // 2 x 2 with stride 3
        matmul(
            (2, 3, 2),
            Strided::rows(&left, 3),
            Strided::rows(&right, 3).transposed(),
            &mut out,
            3,
            2.0,
            true,
        );
        assert_eq!(out, [24.0, 14.0, 10.0, 42.0, 20.0, 10.0]);
    }

    #[test]
    #[should_panic(expected = "does not fit its slice")]
    fn short_slices_are_refused() {
        let mut out = [0.0; 4];
        let left = Strided::rows(&[1.0; 5], 3);
        matmul((2, 3, 2), left, Strided::rows(&[1.0; 6], 2), &mut out, 2, 1.0, false);
    }
}
