//! Matrix products of slices. CPUs with AVX2 but without AVX-512 use blocks of our own, which read the
//! left matrix where it lies; all others, and shapes that a block does not suit, the `gemm` crate.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major `rows × cols`.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows of `cols` values, `row_stride` apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose; moves nothing.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Values from the first to the last one.
    fn reach(&self) -> usize {
        reach(self.rows, self.cols, self.row_stride, self.col_stride)
    }
}

fn reach(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 {
        return 0;
    }
    (rows - 1) * row_stride + (cols - 1) * col_stride + 1
}

/// Threads of a matrix product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread alone; for products inside a parallel loop.
    One,
    /// All threads of the current rayon pool.
    Pool,
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// Nothing: what the output held is not looked at.
    Zero,
    /// What the output holds.
    Output,
    /// The same row, as long as the output's, everywhere: a bias.
    Row(&'a [f32]),
}

/// A row-major output; several threads may write parts of it that don't overlap.
#[derive(Clone, Copy)]
struct Output {
    start: *mut f32,
    stride: usize,
}

// SAFETY: it is written through only by the products below, each of which has its own part.
unsafe impl Sync for Output {}

/// `out (rows × cols, stride apart) = start + scale · left · right`.
/// Panics when a matrix reaches beyond its slice or the sizes don't fit: a bug of the caller.
pub(crate) fn gemm(
    out: &mut [f32],
    stride: usize,
    left: Matrix<'_>,
    right: Matrix<'_>,
    scale: f32,
    start: Start<'_>,
    threads: Threads,
) {
    let (rows, cols) = (left.rows, right.cols);
    assert!(cols <= stride || rows == 0 || cols == 0, "product: output stride");
    assert!(reach(rows, cols, stride, 1) <= out.len(), "product: output");
    // SAFETY: `out` holds the product (asserted above), and is borrowed mutably.
    unsafe { gemm_into(out.as_mut_ptr(), stride, left, right, scale, start, threads) }
}

/// [`gemm`] into columns of a matrix whose other columns another thread may be writing.
///
/// # Safety
/// `out` points to the product's first value, `rows × cols` values with `stride` from row to row can
/// be written there, and nobody else reads or writes them meanwhile.
pub(crate) unsafe fn gemm_into(
    out: *mut f32,
    stride: usize,
    left: Matrix<'_>,
    right: Matrix<'_>,
    scale: f32,
    start: Start<'_>,
    threads: Threads,
) {
    let (rows, cols) = (left.rows, right.cols);
    assert_eq!(left.cols, right.rows, "product: inner sizes");
    assert!(left.reach() <= left.data.len(), "product: left matrix");
    assert!(right.reach() <= right.data.len(), "product: right matrix");
    if let Start::Row(row) = start {
        assert_eq!(row.len(), cols, "product: start");
    }
    if rows == 0 || cols == 0 {
        return;
    }
    let out = Output { start: out, stride };
    let threads = match threads {
        Threads::Pool => rayon::current_num_threads(),
        Threads::One => 1,
    };
    #[cfg(target_arch = "x86_64")]
    if avx2::suits(left, right) {
        // SAFETY: the product suits; the matrices lie in their slices (asserted above), and the
        // output is the caller's promise.
        return unsafe { avx2::product(out, left, right, scale, start, threads) };
    }
    // SAFETY: as above.
    unsafe { by_crate(out, left, right, scale, start, threads) }
}

/// # Safety
/// As [`gemm_into`], with matrices that lie in their slices.
unsafe fn by_crate(
    out: Output,
    left: Matrix<'_>,
    right: Matrix<'_>,
    scale: f32,
    start: Start<'_>,
    threads: usize,
) {
    if let Start::Row(values) = start {
        for row in 0..left.rows {
            // SAFETY: a row of the output, which nobody else uses (the caller's promise).
            let row = unsafe { out.start.add(row * out.stride) };
            unsafe { row.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        }
    }
    let parallelism = match threads {
        1 => gemm::Parallelism::None,
        _ => gemm::Parallelism::Rayon(0),
    };
    // SAFETY: the caller's promise; slices are shorter than isize::MAX bytes, so strides fit.
    unsafe {
        gemm::gemm(
            left.rows,
            right.cols,
            left.cols,
            out.start,
            1,
            out.stride as isize,
            !matches!(start, Start::Zero),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Seed;

    /// Rows, inner size and columns around the edges of tiles, panels and blocks.
    const SHAPES: [[usize; 3]; 14] = [
        [1, 5, 40],
        [6, 3, 43],
        [7, 64, 50],
        [13, 17, 8],
        [32, 1, 32],
        [33, 100, 23],
        [50, 50, 32],
        [64, 1030, 64],
        [65, 513, 40],
        [96, 512, 129],
        [97, 700, 130],
        [200, 40, 9],
        [6, 40, 300],
        [5, 0, 6],
    ];

    fn values(count: usize, name: &str) -> Vec<f32> {
        let mut stream = Seed::new(3).stream(name);
        (0..count).map(|_| stream.normal() as f32).collect()
    }

    /// Every product of the shape with each matrix row-major or transposed.
    fn layouts<'a>(
        left: &'a [f32],
        right: &'a [f32],
        [rows, inner, cols]: [usize; 3],
    ) -> [(Matrix<'a>, Matrix<'a>); 4] {
        let (a, at) = (Matrix::new(left, rows, inner), Matrix::new(left, inner, rows).t());
        let (b, bt) = (Matrix::new(right, inner, cols), Matrix::new(right, cols, inner).t());
        [(a, b), (a, bt), (at, b), (at, bt)]
    }

    fn get(m: &Matrix<'_>, row: usize, col: usize) -> f64 {
        f64::from(m.data[row * m.row_stride + col * m.col_stride])
    }

    #[test]
    fn products_equal_sums_in_double_precision() {
        for shape @ [rows, inner, cols] in SHAPES {
            let (left, right) = (values(rows * inner, "left"), values(inner * cols, "right"));
            for (left, right) in layouts(&left, &right, shape) {
                let row = values(cols, "row");
                let starts = [Start::Zero, Start::Output, Start::Row(&row)];
                for (start, scale) in starts.into_iter().flat_map(|s| [(s, 1.0), (s, -0.5)]) {
                    // three columns more than the product, which must stay
                    let stride = cols + 3;
                    let before = values(rows * stride, "out");
                    let mut out = before.clone();
                    gemm(&mut out, stride, left, right, scale, start, Threads::One);
                    for at in 0..rows {
                        for col in 0..stride {
                            let (old, new) = (before[at * stride + col], out[at * stride + col]);
                            if col >= cols {
                                assert_eq!(old.to_bits(), new.to_bits(), "{shape:?}");
                                continue;
                            }
                            let sum: f64 =
                                (0..inner).map(|k| get(&left, at, k) * get(&right, k, col)).sum();
                            let begin = match start {
                                Start::Zero => 0.0,
                                Start::Output => old,
                                Start::Row(row) => row[col],
                            };
                            let expected = f64::from(begin) + f64::from(scale) * sum;
                            let off = (f64::from(new) - expected).abs();
                            assert!(
                                off <= 2e-6 * (1.0 + inner as f64).sqrt() * 8.0,
                                "{shape:?} {at} {col}: {new} {expected}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn threads_give_the_same_bits() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for shape @ [rows, inner, cols] in [[300, 70, 65], [65, 700, 300], [64, 1030, 64]] {
            let (left, right) = (values(rows * inner, "left"), values(inner * cols, "right"));
            for (left, right) in layouts(&left, &right, shape) {
                let mut one = vec![0f32; rows * cols];
                let mut three = one.clone();
                gemm(&mut one, cols, left, right, 1.0, Start::Zero, Threads::One);
                pool.install(|| {
                    gemm(&mut three, cols, left, right, 1.0, Start::Zero, Threads::Pool)
                });
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&one), bits(&three), "{shape:?}");
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_in_its_row_and_column() {
        let (rows, inner, cols) = (40, 33, 50);
        let (mut left, right) = (values(rows * inner, "left"), values(inner * cols, "right"));
        left[7 * inner + 5] = f32::NAN;
        let mut out = vec![0f32; rows * cols];
        let (a, b) = (Matrix::new(&left, rows, inner), Matrix::new(&right, inner, cols));
        gemm(&mut out, cols, a, b, 1.0, Start::Zero, Threads::One);
        for (at, value) in out.iter().enumerate() {
            assert_eq!(value.is_nan(), at / cols == 7, "{at}");
        }
    }

    #[test]
    #[should_panic(expected = "product: right matrix")]
    fn short_slices_are_refused() {
        let mut out = [0.0; 4];
        let (left, right) = (Matrix::new(&[1.0; 6], 2, 3), Matrix::new(&[1.0; 5], 3, 2));
        gemm(&mut out, 2, left, right, 1.0, Start::Zero, Threads::One);
    }
}
