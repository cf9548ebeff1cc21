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
/// `threads` is the number of rayon threads; the sums are the same for every number of threads.
#[allow(clippy::too_many_arguments)]
pub(in super::super) fn matmul(
    (m, k, n): (usize, usize, usize),
    left: Strided<'_>,
    right: Strided<'_>,
    out: &mut [f32],
    out_stride: usize,
    scale: f32,
    accumulate: bool,
    threads: usize,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    left.assert_holds(m, k);
    right.assert_holds(k, n);
    assert!(out_stride >= n && (m - 1) * out_stride + n <= out.len(), "output does not fit");
    let parallelism =
        if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
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
            parallelism,
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

/// `out[t][r] = x[t] · weights[r]` for `count` rows of `x` (row-major, `cols` wide, `x_stride`
/// apart) where the weights come in panels of `width` rows: `unpack(first, panel)` writes rows
/// `first..first + width` transposed, element (input k, row r) at `k · width + r`, and `depth`
/// inputs of them (at least `cols`). Panels are spread over the threads.
#[allow(clippy::too_many_arguments)]
pub(in super::super) fn matmul_panels(
    (count, cols, rows): (usize, usize, usize),
    x: &[f32],
    x_stride: usize,
    out: &mut [f32],
    out_stride: usize,
    (width, depth): (usize, usize),
    threads: usize,
    unpack: impl Fn(usize, &mut [f32]) + Sync,
) {
    if count == 0 || cols == 0 {
        return;
    }
    assert!(depth >= cols);
    Strided::rows(x, x_stride).assert_holds(count, cols);
    let columns = Columns::new(out, count, out_stride, rows);
    let run = |panel: usize| {
        PANEL.with_borrow_mut(|buffer| {
            buffer.resize(width * depth, 0.0);
            let first = panel * width;
            unpack(first, buffer);
            let weights = Strided::rows(buffer, width);
            weights.assert_holds(cols, width);
            let n = width.min(rows - first);
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
                    buffer.as_ptr(),
                    1,
                    width as isize,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        });
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
            1,
        );
        assert_eq!(out, [24.0, 14.0, 10.0, 42.0, 20.0, 10.0]);
    }

    #[test]
    #[should_panic(expected = "does not fit its slice")]
    fn short_slices_are_refused() {
        let mut out = [0.0; 4];
        let left = Strided::rows(&[1.0; 5], 3);
        matmul((2, 3, 2), left, Strided::rows(&[1.0; 6], 2), &mut out, 2, 1.0, false, 1);
    }
}
