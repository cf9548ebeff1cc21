//! Principal directions: of sentence embeddings for the token table, of picture patches for the
//! latent code.

use candle_core::{Device, Tensor};
use common::rng::Seed;
use common::{Error, Result};
use ndarray::{Array1, Array2, Axis};

/// `x ↦ (x - mean) · axes` onto the directions of largest variance.
#[derive(Debug, Clone, PartialEq)]
pub struct Projection {
    mean: Array1<f32>,
    /// `[inputs, width]`, orthonormal columns.
    axes: Array2<f32>,
}

impl Projection {
    /// Fits `width` directions to `rows` by subspace iteration.
    ///
    /// # Errors
    /// [`Error::Usage`] when `width` exceeds the rows' width.
    pub fn fit(rows: &Array2<f32>, width: usize, seed: Seed) -> Result<Self> {
        let inputs = rows.ncols();
        if width > inputs {
            return Err(Error::usage(format!("width {width}; use at most {inputs}")));
        }
        let mean = rows.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(inputs));
        let centred = rows - &mean;
        let covariance = centred.t().dot(&centred);
        let mut stream = seed.stream("projection");
        let mut axes = Array2::from_shape_simple_fn((inputs, width), || stream.normal() as f32);
        for _ in 0..30 {
            orthonormalise(&mut axes);
            axes = covariance.dot(&axes);
        }
        orthonormalise(&mut axes);
        Ok(Self { mean, axes })
    }

    /// Mean `[inputs]` and axes `[inputs, width]` for a weight file.
    pub fn tensors(&self) -> Result<[Tensor; 2]> {
        let (inputs, width) = self.axes.dim();
        let mean = Tensor::from_vec(self.mean.to_vec(), inputs, &Device::Cpu)?;
        let axes: Vec<f32> = self.axes.iter().copied().collect();
        Ok([mean, Tensor::from_vec(axes, (inputs, width), &Device::Cpu)?])
    }

    /// From what [`Projection::tensors`] gave.
    pub fn from_tensors(mean: &Tensor, axes: &Tensor) -> Result<Self> {
        let (inputs, width) = axes.dims2()?;
        let values = axes.flatten_all()?.to_vec1::<f32>()?;
        let axes = Array2::from_shape_vec((inputs, width), values)
            .map_err(|error| Error::Bug(error.to_string()))?;
        Ok(Self { mean: Array1::from(mean.to_vec1::<f32>()?), axes })
    }

    /// `[rows, inputs]` → `[rows, width]`.
    pub fn apply(&self, rows: &Array2<f32>) -> Array2<f32> {
        (rows - &self.mean).dot(&self.axes)
    }

    /// [`Projection::apply`] with rows scaled to unit length.
    pub fn apply_unit(&self, rows: &Array2<f32>) -> Array2<f32> {
        let mut out = self.apply(rows);
        for mut row in out.rows_mut() {
            let length = row.dot(&row).sqrt().max(1e-6);
            row /= length;
        }
        out
    }
}

/// Gram–Schmidt on columns, twice for accuracy.
fn orthonormalise(axes: &mut Array2<f32>) {
    for _ in 0..2 {
        for at in 0..axes.ncols() {
            let mut column = axes.column(at).to_owned();
            for before in 0..at {
                let other = axes.column(before).to_owned();
                let share = column.dot(&other);
                column.scaled_add(-share, &other);
            }
            let length = column.dot(&column).sqrt().max(1e-12);
            column /= length;
            axes.column_mut(at).assign(&column);
        }
    }
}
