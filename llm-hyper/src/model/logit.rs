//! Eq. 1 for one user and one ad, and for all users and ads as one matrix product.

use common::ops::{affine_into, sigmoid_in_place};
use common::{Error, Result};
use rayon::prelude::*;

/// Rows of users that are scored together: their features and scores stay in the processor's cache.
const TILE: usize = 512;

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
    /// (features, ads) row by row.
    weights: Vec<f32>,
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
        let biases = biases.iter().map(|b| *b as f32).collect();
        Ok(Self { weights: transposed, biases, features })
    }

    /// Number of ads.
    pub fn ads(&self) -> usize {
        self.biases.len()
    }

    /// Eq. 1 for every user and ad. `users` holds (users, features) row by row; the result holds
    /// (users, ads) probabilities row by row.
    ///
    /// # Errors
    /// [`Error::Data`] when `users` is no whole number of rows.
    pub fn probabilities(&self, users: &[f32]) -> Result<Vec<f32>> {
        let mut out = vec![0.0; users.len() / self.features * self.ads()];
        self.probabilities_into(users, &mut out)?;
        Ok(out)
    }

    /// [`Self::probabilities`] into a buffer, which saves its allocation.
    ///
    /// # Errors
    /// [`Error::Data`] when `users` is no whole number of rows, or `out` not of their number.
    pub fn probabilities_into(&self, users: &[f32], out: &mut [f32]) -> Result<()> {
        self.run(users, out, sigmoid_in_place)
    }

    /// w · x + b for every user and ad, as [`Self::probabilities_into`].
    ///
    /// # Errors
    /// As [`Self::probabilities_into`].
    pub fn logits_into(&self, users: &[f32], out: &mut [f32]) -> Result<()> {
        self.run(users, out, |_| {})
    }

    fn run(&self, users: &[f32], out: &mut [f32], link: impl Fn(&mut [f32]) + Sync) -> Result<()> {
        let (ads, rows) = (self.ads(), users.len() / self.features);
        if users.len() != rows * self.features || out.len() != rows * ads {
            return Err(Error::data(
                format!("{} feature values for {} scores", users.len(), out.len()),
                format!("{} features per user and one score per user and ad", self.features),
            ));
        }
        let tiles = out.par_chunks_mut(TILE * ads).zip(users.par_chunks(TILE * self.features));
        tiles.for_each(|(out, users)| {
            affine_into(out, users, &self.weights, &self.biases);
            link(out);
        });
        Ok(())
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
