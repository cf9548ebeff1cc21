//! What is special about an ad, added to what all ads share (ours).
//!
//! A small LLM says little about weights that are alike for all ads, and its answers have a bias
//! per feature. So an answer counts by how unusual it is among the answers about other ads, and
//! moves the library's median by as much as such answers were right about retired ads.

use common::{Error, Result};
use serde::{Deserialize, Serialize};

/// Learned on retired ads that were treated as cold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Residual {
    /// Mean raw answer of each feature.
    pub mean: Vec<f64>,
    /// Standard deviation of each feature's raw answers.
    pub sd: Vec<f64>,
    /// Standard deviations of trained weights per standard deviation of answers, at least 0: the
    /// least squares slope. 0 leaves the library's median.
    pub strength: f64,
}

impl Residual {
    /// `raw` holds the answers, `special` the (trained weight − median) / sd, one vector per retired
    /// ad each.
    ///
    /// # Errors
    /// [`Error::Data`] with fewer than three ads or other lengths.
    pub fn fit(raw: &[Vec<f64>], special: &[Vec<f64>]) -> Result<Self> {
        let width = raw.first().map_or(0, Vec::len);
        let even = raw.iter().chain(special).all(|v| v.len() == width);
        if raw.len() < 3 || raw.len() != special.len() || !even {
            return Err(Error::data(
                format!("{} answers and {} weight vectors", raw.len(), special.len()),
                "three or more retired ads with one of each, all of one length",
            ));
        }
        let column = |j: usize| -> Vec<f64> { raw.iter().map(|answers| answers[j]).collect() };
        let (mean, sd): (Vec<f64>, Vec<f64>) =
            (0..width).map(|j| common::stats::mean_sd(&column(j))).unzip();
        let mut residual = Self { mean, sd, strength: 1.0 };
        let (mut top, mut bottom) = (0.0, 0.0);
        for (raw, special) in raw.iter().zip(special) {
            for (z, s) in residual.unusual(raw).iter().zip(special) {
                top += z * s;
                bottom += z * z;
            }
        }
        residual.strength = if bottom > 0.0 { (top / bottom).max(0.0) } else { 0.0 };
        Ok(residual)
    }

    /// Answers in standard deviations from each feature's mean; 0 for a feature whose answers are
    /// all equal.
    ///
    /// # Panics
    /// When the length differs from the fit's.
    pub fn unusual(&self, raw: &[f64]) -> Vec<f64> {
        assert_eq!(raw.len(), self.mean.len(), "one answer per feature");
        raw.iter()
            .zip(self.mean.iter().zip(&self.sd))
            .map(|(u, (mean, sd))| if *sd > 1e-12 { (u - mean) / sd } else { 0.0 })
            .collect()
    }

    /// spread · unusual(raw): the answer on the scale of trained weights, around 0. A feature whose
    /// spread is not finite (constant weights) gets 0.
    pub fn direction(&self, raw: &[f64], spread: &[f64]) -> Vec<f64> {
        let both = self.unusual(raw).into_iter().zip(spread);
        both.map(|(z, spread)| if spread.is_finite() { spread * z } else { 0.0 }).collect()
    }

    /// centre + strength · direction(raw).
    pub fn weights(&self, raw: &[f64], centre: &[f64], spread: &[f64]) -> Vec<f64> {
        let moved = self.direction(raw, spread).into_iter().zip(centre);
        moved.map(|(direction, centre)| centre + self.strength * direction).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn strength_is_the_slope_and_never_negative() {
        let raw = vec![vec![1.0, 5.0], vec![2.0, 5.0], vec![3.0, 5.0]];
        // The first feature's answers are −1, 0, 1 standard deviations from their mean.
        let special = vec![vec![-0.5, 9.0], vec![0.0, 9.0], vec![0.5, 9.0]];
        let fitted = Residual::fit(&raw, &special).unwrap();
        assert!((fitted.strength - 0.5).abs() < 1e-12, "{fitted:?}");
        let weights = fitted.weights(&[4.0, 7.0], &[0.1, 0.2], &[2.0, 1.0]);
        assert!((weights[0] - 2.1).abs() < 1e-12 && weights[1] == 0.2, "{weights:?}");
        let wrong: Vec<Vec<f64>> = special.iter().map(|s| s.iter().map(|v| -v).collect()).collect();
        assert_eq!(Residual::fit(&raw, &wrong).unwrap().strength, 0.0);
    }
}
