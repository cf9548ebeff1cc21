//! Linear scores of many rows, written into a caller's buffer: no tensor, no gradient, one thread,
//! for loops that spread blocks of rows over threads themselves.

use super::kernel::simd;
use super::math::sigmoid;
use super::product::{Matrix, Start, Threads, gemm};

/// `out (rows × cols) = x (rows × inner) · weights (inner × cols) + bias (cols)`, all row by row.
///
/// # Panics
/// When the sizes don't fit.
pub fn affine_into(out: &mut [f32], x: &[f32], weights: &[f32], bias: &[f32]) {
    let cols = bias.len();
    if cols == 0 || out.is_empty() {
        return;
    }
    let (rows, inner) = (out.len() / cols, weights.len() / cols);
    assert_eq!(out.len(), rows * cols, "affine_into: output");
    assert_eq!(weights.len(), inner * cols, "affine_into: weights");
    assert_eq!(x.len(), rows * inner, "affine_into: input");
    let (left, right) = (Matrix::new(x, rows, inner), Matrix::new(weights, inner, cols));
    gemm(out, cols, left, right, 1.0, Start::Row(bias), Threads::One);
}

simd! {
    /// `1 / (1 + e^-x)` of every value, to 3e-7.
    pub fn sigmoid_in_place(values: &mut [f32]) {
        for value in values.iter_mut() {
            *value = sigmoid(*value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_a_worked_example() {
        // Rows (1, 2) and (0, -1) against columns (3, 0.5), (-1, 0), (0, 2).
        let (x, weights) = ([1.0, 2.0, 0.0, -1.0], [3.0, -1.0, 0.0, 0.5, 0.0, 2.0]);
        let mut out = [f32::NAN; 6];
        affine_into(&mut out, &x, &weights, &[0.0, 1.0, -4.0]);
        assert_eq!(out, [4.0, 0.0, 0.0, -0.5, 1.0, -6.0]);
        sigmoid_in_place(&mut out);
        assert_eq!((out[1], out[2]), (0.5, 0.5));
        assert!((out[0] - 0.982_013_8).abs() < 1e-6 && (out[5] - 0.002_472_6).abs() < 1e-6);
    }
}
