//! Eq. 1 for one user and one ad, and for all users and ads as one matrix product.

use candle_core::{Device, Tensor};
use common::{Error, Result};
use rayon::prelude::*;

/// Rows of users that are scored together: their features, logits and probabilities stay in the
/// processor's cache.
const TILE: usize = 2048;

/// 1 / (1 + e^−z), without overflow.
pub fn sigmoid(z: f64) -> f64 {
    if z >= 0.0 {
        1.0 / (1.0 + (-z).exp())
    } else {
        let e = z.exp();
        e / (1.0 + e)
    }
}

/// ln(p / (1 − p)).
pub fn logit(p: f64) -> f64 {
    (p / (1.0 - p)).ln()
}

/// w · x.
///
/// # Panics
/// When the lengths differ.
pub fn dot(weights: &[f64], features: &[f64]) -> f64 {
    assert_eq!(weights.len(), features.len(), "one weight per feature");
    weights.iter().zip(features).map(|(w, x)| w * x).sum()
}

/// Eq. 1: the click probability sigmoid(w · x + b) of one user on one ad.
///
/// # Panics
/// When the lengths differ.
pub fn probability(weights: &[f64], bias: f64, features: &[f64]) -> f64 {
    sigmoid(dot(weights, features) + bias)
}

/// A linear click model: Eq. 1's w and b.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Linear {
    /// One weight per feature.
    pub weights: Vec<f64>,
    /// Intercept.
    pub bias: f64,
}

impl Linear {
    /// w · x + b.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn logit(&self, features: &[f64]) -> f64 {
        dot(&self.weights, features) + self.bias
    }
}

/// Click models of many ads, ready to score many users.
#[derive(Debug, Clone)]
pub struct Scorer {
    /// (features, ads)
    weights: Tensor,
    biases: Vec<f32>,
    features: usize,
}

impl Scorer {
    /// `weights` has one vector of equal length per ad, `biases` one number per ad.
    ///
    /// # Errors
    /// [`Error::Data`] without ads, or when the lengths differ.
    pub fn new(weights: &[Vec<f64>], biases: &[f64]) -> Result<Self> {
        let features = weights.first().map_or(0, Vec::len);
        if features == 0
            || weights.len() != biases.len()
            || weights.iter().any(|w| w.len() != features)
        {
            return Err(Error::data(
                format!("{} weight vectors and {} intercepts", weights.len(), biases.len()),
                "one weight vector of the same length and one intercept per ad, at least one ad",
            ));
        }
        let ads = weights.len();
        let mut transposed = vec![0.0f32; features * ads];
        for (ad, row) in weights.iter().enumerate() {
            for (feature, value) in row.iter().enumerate() {
                transposed[feature * ads + ad] = *value as f32;
            }
        }
        Ok(Self {
            weights: Tensor::from_vec(transposed, (features, ads), &Device::Cpu)?,
            biases: biases.iter().map(|b| *b as f32).collect(),
            features,
        })
    }

    /// Eq. 1 for every user and ad. `users` holds (users, features) row by row; the result holds
    /// (users, ads) probabilities row by row.
    ///
    /// # Errors
    /// [`Error::Data`] when `users` is no whole number of rows.
    pub fn probabilities(&self, users: &[f32]) -> Result<Vec<f32>> {
        self.run(users, |logit| 1.0 / (1.0 + (-logit).exp()))
    }

    /// w · x + b for every user and ad, as [`Self::probabilities`].
    ///
    /// # Errors
    /// As [`Self::probabilities`].
    pub fn logits(&self, users: &[f32]) -> Result<Vec<f32>> {
        self.run(users, |logit| logit)
    }

    fn run(&self, users: &[f32], link: impl Fn(f32) -> f32 + Sync) -> Result<Vec<f32>> {
        if !users.len().is_multiple_of(self.features) {
            return Err(Error::data(
                format!("{} feature values", users.len()),
                format!("a multiple of the {} features of the ads", self.features),
            ));
        }
        let ads = self.biases.len();
        let mut out = vec![0.0f32; users.len() / self.features * ads];
        out.par_chunks_mut(TILE * ads).zip(users.par_chunks(TILE * self.features)).try_for_each(
            |(out, users)| -> Result<()> {
                let rows = users.len() / self.features;
                let tile = Tensor::from_slice(users, (rows, self.features), &Device::Cpu)?;
                let product = tile.matmul(&self.weights)?.flatten_all()?;
                let (storage, _) = product.storage_and_layout();
                let candle_core::Storage::Cpu(storage) = &*storage else {
                    return Err(Error::Bug("a CPU product outside main memory".into()));
                };
                let product = storage.as_slice::<f32>()?;
                for (out, product) in out.chunks_mut(ads).zip(product.chunks(ads)) {
                    for ((out, z), b) in out.iter_mut().zip(product).zip(&self.biases) {
                        *out = link(z + b);
                    }
                }
                Ok(())
            },
        )?;
        Ok(out)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sigmoid_neither_overflows_nor_loses_symmetry() {
        assert_eq!(sigmoid(800.0), 1.0);
        assert_eq!(sigmoid(-800.0), 0.0);
        assert!((sigmoid(1.3) + sigmoid(-1.3) - 1.0).abs() < 1e-15);
        assert!((logit(sigmoid(0.7)) - 0.7).abs() < 1e-12);
    }

    #[test]
    fn probability_of_a_worked_example() {
        // 0.5·2 − 1·1 + 0.25 = 0.25.
        let p = probability(&[0.5, -1.0], 0.25, &[2.0, 1.0]);
        assert!((p - 0.562_176_500_885_798_1).abs() < 1e-12, "{p}");
    }
}
