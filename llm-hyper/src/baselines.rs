//! What the LLM has to beat, and controls that would expose a placebo. Each gives one weight vector
//! per cold ad; intercepts are calibrated the same way for all.

use common::rng::Stream;
use common::{Error, Result};
use ndarray::{Array1, Array2, ArrayView1};

use crate::model::linear::Cholesky;
use crate::model::normalise::norm;

/// Ridge regression from text embedding to weight vector: the classical hypernetwork. In the dual,
/// so that it is as large as the library, not as the embedding.
#[derive(Debug, Clone)]
pub struct RidgeMap {
    /// (ads, width) embeddings that it was trained on.
    embeddings: Array2<f64>,
    /// Mean trained weights.
    mean: Array1<f64>,
    /// (ads, features) dual coefficients.
    dual: Array2<f64>,
    /// Penalty that leave-one-out chose.
    pub penalty: f64,
    /// (ads, features) prediction for each retired ad from all the others.
    pub leave_one_out: Array2<f64>,
}

impl RidgeMap {
    /// Fits `weights` (ads, features) on unit `embeddings` (ads, width); the penalty with the lowest
    /// leave-one-out squared error is kept.
    ///
    /// # Errors
    /// [`Error::Data`] with fewer than two ads or other lengths.
    pub fn fit(embeddings: &Array2<f64>, weights: &Array2<f64>) -> Result<Self> {
        let n = embeddings.nrows();
        if n < 2 || weights.nrows() != n {
            return Err(Error::data(
                format!("{n} embeddings and {} weight vectors", weights.nrows()),
                "two or more retired ads with one of each",
            ));
        }
        let mean = weights.sum_axis(ndarray::Axis(0)) / n as f64;
        let centred = weights - &mean;
        let kernel = embeddings.dot(&embeddings.t());
        let mut best: Option<(f64, Self)> = None;
        for penalty in [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0] {
            let mut regular = kernel.clone();
            regular.diag_mut().mapv_inplace(|k| k + penalty);
            let inverse = Cholesky::new(regular.view())?.inverse();
            let dual = inverse.dot(&centred);
            // Leaving ad i out changes its prediction by dualᵢ / inverseᵢᵢ (the mean stays).
            let mut held_out = centred.clone();
            for i in 0..n {
                let mut row = held_out.row_mut(i);
                row.scaled_add(-1.0 / inverse[[i, i]], &dual.row(i));
            }
            let error = (&held_out - &centred).mapv(|e| e * e).sum();
            if best.as_ref().is_none_or(|(lowest, _)| error < *lowest) {
                let map = Self {
                    embeddings: embeddings.clone(),
                    mean: mean.clone(),
                    dual,
                    penalty,
                    leave_one_out: &held_out + &mean,
                };
                best = Some((error, map));
            }
        }
        best.map(|(_, map)| map).ok_or_else(|| Error::Bug("no ridge penalty was tried".into()))
    }

    /// Weights for a new ad's unit embedding.
    pub fn predict(&self, embedding: ArrayView1<'_, f64>) -> Vec<f64> {
        let similar = self.embeddings.dot(&embedding);
        (self.dual.t().dot(&similar) + &self.mean).to_vec()
    }
}

/// Random directions of the same norm as `weights`.
pub fn random_like(weights: &[f64], stream: &mut Stream) -> Vec<f64> {
    let drawn: Vec<f64> = weights.iter().map(|_| stream.normal()).collect();
    let scale = norm(weights) / norm(&drawn);
    drawn.into_iter().map(|w| w * scale).collect()
}

/// The same weights on shuffled features: what is left when the LLM's answers are about other
/// feature names. `order` is one permutation for all ads.
pub fn shuffled(weights: &[f64], order: &[usize]) -> Vec<f64> {
    order.iter().map(|&j| weights[j]).collect()
}
