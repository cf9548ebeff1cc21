//! Cholesky factorisation of small symmetric positive definite matrices.

use common::{Error, Result};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

/// Lower triangle L with `L Lᵀ` = the matrix it was made from.
#[derive(Debug, Clone)]
pub struct Cholesky {
    lower: Array2<f64>,
}

impl Cholesky {
    /// Factorises `matrix` (n, n), of which only the lower triangle is read.
    ///
    /// # Errors
    /// [`Error::Data`] when it is not positive definite.
    pub fn new(matrix: ArrayView2<'_, f64>) -> Result<Self> {
        let n = matrix.nrows();
        let mut lower = Array2::zeros((n, n));
        for i in 0..n {
            for j in 0..=i {
                let known: f64 = (0..j).map(|k| lower[[i, k]] * lower[[j, k]]).sum();
                let rest = matrix[[i, j]] - known;
                if i != j {
                    lower[[i, j]] = rest / lower[[j, j]];
                } else if rest > 0.0 && rest.is_finite() {
                    lower[[i, i]] = rest.sqrt();
                } else {
                    return Err(Error::data(
                        format!("the pivot {rest} in column {i} of a Cholesky factorisation"),
                        "a positive definite matrix; raise the penalty",
                    ));
                }
            }
        }
        Ok(Self { lower })
    }

    /// x with `L Lᵀ x = right`.
    pub fn solve(&self, right: ArrayView1<'_, f64>) -> Array1<f64> {
        let mut x = right.to_owned();
        for i in 0..x.len() {
            let known: f64 = (0..i).map(|k| self.lower[[i, k]] * x[k]).sum();
            x[i] = (x[i] - known) / self.lower[[i, i]];
        }
        self.back(x)
    }

    /// x with `Lᵀ x = right`: a standard normal `right` gives x the covariance `(L Lᵀ)⁻¹`.
    pub fn back(&self, right: Array1<f64>) -> Array1<f64> {
        let mut x = right;
        for i in (0..x.len()).rev() {
            let known: f64 = (i + 1..x.len()).map(|k| self.lower[[k, i]] * x[k]).sum();
            x[i] = (x[i] - known) / self.lower[[i, i]];
        }
        x
    }

    /// The inverse of the factorised matrix.
    pub fn inverse(&self) -> Array2<f64> {
        let n = self.lower.nrows();
        let mut inverse = Array2::zeros((n, n));
        for column in 0..n {
            let mut unit = Array1::zeros(n);
            unit[column] = 1.0;
            inverse.column_mut(column).assign(&self.solve(unit.view()));
        }
        inverse
    }
}
