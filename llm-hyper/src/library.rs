//! The warm library: retired ads with their trained click models, and what is read off them.

use std::path::Path;

use common::{Error, Result};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::data::{Ad, Schema};
use crate::model::intercept::smoothed_rate;
use crate::model::logit::dot;
use crate::model::normalise::{WeightScale, median};
use crate::model::retrieve::{Found, similarity_weight};

/// Retired ads and reference users. Its file is JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Library {
    /// The features of all weights.
    pub schema: Schema,
    /// Inverse penalty 1/λ that the weights were trained with.
    pub c: f64,
    /// Retired ads.
    pub ads: Vec<RetiredAd>,
    /// Ads that were left out, with the reason.
    pub skipped: Vec<Skipped>,
    /// Standardised features of users, for intercepts.
    pub reference: Vec<Vec<f32>>,
}

/// A retired ad with its trained click model (Eq. 2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetiredAd {
    /// The ad.
    pub ad: Ad,
    /// One trained weight per feature.
    pub weights: Vec<f64>,
    /// Trained intercept.
    pub bias: f64,
    /// Clicks it was trained on.
    pub clicks: usize,
    /// Impressions it was trained on.
    pub impressions: usize,
}

/// An ad without trained weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skipped {
    /// Its id.
    pub id: String,
    /// Why.
    pub reason: String,
}

impl Library {
    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Data`] when the file is not a whole library.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let library: Self = serde_json::from_slice(&bytes).map_err(|error| {
            Error::data(error.to_string(), "a library as `llm-hyper fit` writes it").in_file(path)
        })?;
        library.check().map_err(|error| error.in_file(path))?;
        Ok(library)
    }

    /// Writes the library as JSON, atomically.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string(self)
            .map_err(|error| Error::Bug(format!("library as JSON: {error}")))?;
        common::files::atomic_write(path, text.as_bytes())
    }

    fn check(&self) -> Result<()> {
        self.schema.check()?;
        let width = self.schema.len();
        for retired in &self.ads {
            let finite = retired.weights.iter().chain([&retired.bias]).all(|w| w.is_finite());
            if retired.weights.len() != width || !finite {
                return Err(Error::data(
                    format!("ad {:?} with {} weights", retired.ad.id, retired.weights.len()),
                    format!("{width} finite weights, one per feature; fit the library again"),
                ));
            }
        }
        if self.reference.is_empty() || self.reference.iter().any(|user| user.len() != width) {
            return Err(Error::data(
                format!("{} reference users, or one of another length", self.reference.len()),
                format!("at least one reference user with {width} features"),
            ));
        }
        Ok(())
    }

    /// Click rate of all retired ads together; ½ without impressions.
    pub fn rate(&self) -> f64 {
        let clicks: usize = self.ads.iter().map(|ad| ad.clicks).sum();
        let shown: usize = self.ads.iter().map(|ad| ad.impressions).sum();
        smoothed_rate(clicks as f64, shown as f64, 1.0, 1.0)
    }

    /// Click rate of one retired ad, drawn towards the library's by `smoothing` clicks.
    pub fn rate_of(&self, index: usize, smoothing: f64) -> f64 {
        let (ad, all) = (&self.ads[index], self.rate());
        let other = smoothing * (1.0 - all) / all;
        smoothed_rate(ad.clicks as f64, ad.impressions as f64, smoothing, other)
    }

    /// Median trained weight of each feature: the cold-start baseline LR_cold. Zeros without ads.
    pub fn centre(&self) -> Vec<f64> {
        (0..self.schema.len())
            .map(|j| {
                let column: Vec<f64> = self.ads.iter().map(|ad| ad.weights[j]).collect();
                if column.is_empty() { 0.0 } else { median(&column) }
            })
            .collect()
    }

    /// Mean trained weight of each feature. Zeros without ads.
    pub fn mean(&self) -> Vec<f64> {
        let n = self.ads.len().max(1) as f64;
        let sum = |j: usize| self.ads.iter().map(|ad| ad.weights[j]).sum::<f64>();
        (0..self.schema.len()).map(|j| sum(j) / n).collect()
    }

    /// Standard deviation of each feature's trained weight; infinite where it is constant.
    pub fn spread(&self) -> Vec<f64> {
        (0..self.schema.len())
            .map(|j| {
                let column: Vec<f64> = self.ads.iter().map(|ad| ad.weights[j]).collect();
                let (_, sd) = common::stats::mean_sd(&column);
                if sd > 1e-9 { sd } else { f64::INFINITY }
            })
            .collect()
    }

    /// What is special about a retired ad: (trained weight − median) / sd of each feature.
    pub fn special(&self, index: usize) -> Vec<f64> {
        let weights = self.ads[index].weights.iter().zip(self.centre()).zip(self.spread());
        weights.map(|((w, centre), spread)| (w - centre) / spread).collect()
    }

    /// Similarity-weighted mean of `value` over found ads, by their index here; `None` without any.
    pub fn mean_over(&self, found: &[Found], value: impl Fn(usize) -> f64) -> Option<f64> {
        let total: f64 = found.iter().map(|f| similarity_weight(f.similarity)).sum();
        let share = |f: &Found| similarity_weight(f.similarity) / total * value(f.index);
        (!found.is_empty()).then(|| found.iter().map(share).sum())
    }

    /// kNN weights: the similarity-weighted mean of the found ads' trained weights; `None` without
    /// any.
    pub fn knn_weights(&self, found: &[Found]) -> Option<Vec<f64>> {
        (0..self.schema.len())
            .map(|j| self.mean_over(found, |index| self.ads[index].weights[j]))
            .collect()
    }

    /// Scale of the trained weights; without ads that of weights in [−1, 1].
    pub fn scale(&self) -> WeightScale {
        let vectors: Vec<&[f64]> = self.ads.iter().map(|ad| ad.weights.as_slice()).collect();
        WeightScale::of(&vectors).unwrap_or_else(|| WeightScale {
            mean: 0.0,
            sd: 0.5,
            sorted: vec![-1.0, 0.0, 1.0],
            limit: 1.0,
        })
    }

    /// w · x of every reference user.
    pub fn reference_logits(&self, weights: &[f64]) -> Vec<f64> {
        let mut x = vec![0.0; weights.len()];
        self.reference
            .iter()
            .map(|user| {
                x.iter_mut().zip(user).for_each(|(x, value)| *x = f64::from(*value));
                dot(weights, &x)
            })
            .collect()
    }

    /// (ads, features) trained weights.
    pub fn weights(&self) -> Array2<f64> {
        Array2::from_shape_fn((self.ads.len(), self.schema.len()), |(i, j)| self.ads[i].weights[j])
    }
}
