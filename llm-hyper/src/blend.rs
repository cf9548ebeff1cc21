//! A blend of weight sources, learned on retired ads that are treated as cold (ours).
//!
//! Every source's logits enter one small logistic regression over the impressions of retired ads,
//! for which each source wrote weights without seeing them (leave one ad out). The regression's
//! coefficients multiply the sources' weights. A penalty draws them towards one source alone; of
//! the penalties that cross-validation over ads can't tell from the best one (by two standard errors),
//! the largest is taken, so a source enters only when it pays.

use common::rng::Seed;
use common::{Error, Result, metrics, stats};
use ndarray::Array2;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::model::intercept;
use crate::model::logit::{dot, logit, sigmoid};
use crate::model::prior::Prior;

/// One retired ad treated as cold.
#[derive(Debug, Clone)]
pub struct Example {
    /// One weight vector per source.
    pub sources: Vec<Vec<f64>>,
    /// p̄ that the intercept aims at.
    pub rate: f64,
    /// (rows, features) of its impressions.
    pub features: Array2<f64>,
    /// Clicks of its impressions.
    pub clicked: Vec<bool>,
}

/// Learned coefficients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blend {
    /// One per source.
    pub coefficients: Vec<f64>,
    /// Index of the source that the penalty draws to: its coefficient to 1, all others to 0.
    pub base: usize,
    /// The penalty that cross-validation over ads chose.
    pub penalty: f64,
}

/// Penalties tried, in impressions of logit 1; the last leaves the base as it is.
const PENALTIES: [f64; 6] = [10.0, 100.0, 1_000.0, 10_000.0, 100_000.0, 1e12];
const FOLDS: usize = 5;

impl Blend {
    /// Learns from `examples`, drawn towards source `base`, or towards the one that is best alone.
    /// Every ad counts the same, however many impressions it has.
    ///
    /// # Errors
    /// [`Error::Data`] with fewer than five examples, or without a source.
    pub fn fit(examples: &[Example], base: Option<usize>, seed: Seed) -> Result<Self> {
        let sources = examples.first().map_or(0, |ad| ad.sources.len());
        if examples.len() < FOLDS || sources == 0 {
            return Err(Error::data(
                format!("{} retired ads with {sources} sources of weights", examples.len()),
                format!("at least {FOLDS} with at least one to learn a blend from"),
            ));
        }
        let ads: Vec<Logits> = examples.par_iter().map(Logits::of).collect::<Result<_>>()?;
        let alone: Vec<Vec<f64>> = (0..sources)
            .map(|source| {
                let one: Vec<f64> =
                    (0..sources).map(|s| f64::from(u8::from(s == source))).collect();
                ads.par_iter().map(|ad| ad.loss(&one)).collect()
            })
            .collect();
        let best = |among: &[usize]| {
            let total = |source: usize| among.iter().map(|&ad| alone[source][ad]).sum::<f64>();
            (0..sources).min_by(|&a, &b| total(a).total_cmp(&total(b))).unwrap_or(0)
        };
        let order = seed.stream("blend/folds").permutation(ads.len());
        // Held-out loss of every ad under every penalty.
        let mut losses = vec![vec![0.0; ads.len()]; PENALTIES.len()];
        let of_fold = |fold: usize| {
            let (test, train): (Vec<_>, Vec<_>) =
                order.iter().enumerate().partition(|(at, _)| at % FOLDS == fold);
            let train: Vec<usize> = train.into_iter().map(|(_, &ad)| ad).collect();
            let base = base.unwrap_or_else(|| best(&train));
            let of_penalty = |&penalty: &f64| {
                let fit = coefficients(&ads, &train, base, penalty)?;
                Ok(test.iter().map(|&(_, &ad)| (ad, ads[ad].loss(&fit))).collect::<Vec<_>>())
            };
            PENALTIES.par_iter().map(of_penalty).collect::<Result<Vec<_>>>()
        };
        let folds: Vec<_> = (0..FOLDS).into_par_iter().map(of_fold).collect::<Result<_>>()?;
        for fold in folds {
            for (losses, held_out) in losses.iter_mut().zip(fold) {
                held_out.into_iter().for_each(|(ad, loss)| losses[ad] = loss);
            }
        }
        let penalty = PENALTIES[largest_not_told_apart(&losses)];
        let all: Vec<usize> = (0..ads.len()).collect();
        let base = base.unwrap_or_else(|| best(&all));
        let coefficients = coefficients(&ads, &all, base, penalty)?;
        Ok(Self { coefficients, base, penalty })
    }

    /// Σ coefficient · weights over the sources.
    pub fn weights(&self, sources: &[Vec<f64>]) -> Vec<f64> {
        let mut blended = vec![0.0; sources.first().map_or(0, Vec::len)];
        for (source, coefficient) in sources.iter().zip(&self.coefficients) {
            blended.iter_mut().zip(source).for_each(|(to, w)| *to += coefficient * w);
        }
        blended
    }
}

/// The last row (largest penalty) whose mean exceeds the lowest by no more than two standard errors
/// of the paired difference.
fn largest_not_told_apart(losses: &[Vec<f64>]) -> usize {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let lowest = (0..losses.len())
        .min_by(|&a, &b| mean(&losses[a]).total_cmp(&mean(&losses[b])))
        .unwrap_or(0);
    let close = |at: usize| {
        let pairs = losses[at].iter().zip(&losses[lowest]);
        let (excess, sd) = stats::mean_sd(&pairs.map(|(a, b)| a - b).collect::<Vec<_>>());
        excess <= 2.0 * sd / (losses[at].len() as f64).sqrt()
    };
    (lowest..losses.len()).rev().find(|&at| at == lowest || close(at)).unwrap_or(lowest)
}

/// One ad's impressions as the sources see them.
struct Logits<'a> {
    /// (rows, sources) w · x.
    raw: Array2<f64>,
    /// Each source's intercept by Eq. 6 on the ad's own users, which needs no clicks.
    biases: Vec<f64>,
    rate: f64,
    clicked: &'a [bool],
}

impl<'a> Logits<'a> {
    fn of(ad: &'a Example) -> Result<Self> {
        let mut raw = Array2::zeros((ad.clicked.len(), ad.sources.len()));
        for (mut logits, x) in raw.rows_mut().into_iter().zip(ad.features.rows()) {
            let x = x.to_vec();
            logits.iter_mut().zip(&ad.sources).for_each(|(z, w)| *z = dot(w, &x));
        }
        let solve =
            |column: ndarray::ArrayView1<'_, f64>| intercept::solve(&column.to_vec(), ad.rate);
        let biases = raw.columns().into_iter().map(solve).collect::<Result<_>>()?;
        Ok(Self { raw, biases, rate: ad.rate, clicked: &ad.clicked })
    }

    /// Mean log loss under `coefficients`, the intercept by Eq. 6 on the ad's own users.
    fn loss(&self, coefficients: &[f64]) -> f64 {
        let logits = self.raw.dot(&ndarray::ArrayView1::from(coefficients)).to_vec();
        let Ok(bias) = intercept::solve(&logits, self.rate) else { return f64::INFINITY };
        let p: Vec<f64> = logits.iter().map(|z| sigmoid(z + bias)).collect();
        metrics::log_loss(self.clicked, &p, None)
    }
}

/// Logistic regression of clicks on the sources' logits around p̄, with the coefficients' prior at
/// 1 for `base` and 0 for all others; logit(p̄) is a further input.
fn coefficients(
    ads: &[Logits<'_>],
    train: &[usize],
    base: usize,
    penalty: f64,
) -> Result<Vec<f64>> {
    let sources = ads.first().map_or(0, |ad| ad.biases.len());
    let rows = train.iter().map(|&ad| ads[ad].clicked.len()).sum();
    let mut design = Array2::zeros((rows, sources + 1));
    let mut labels = Vec::with_capacity(rows);
    for &ad in train {
        let ad = &ads[ad];
        let centre = logit(ad.rate);
        for (logits, &clicked) in ad.raw.rows().into_iter().zip(ad.clicked) {
            let row = labels.len();
            for source in 0..sources {
                design[[row, source]] = logits[source] + ad.biases[source] - centre;
            }
            design[[row, sources]] = centre;
            labels.push(clicked);
        }
    }
    let mut mean = vec![0.0; sources + 1];
    (mean[base], mean[sources]) = (1.0, 1.0);
    let prior = Prior { weights: mean, bias: 0.0, precision: penalty, bias_precision: 1.0 };
    let posterior = prior.update(design.view(), &labels)?;
    Ok(posterior.weights[..sources].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_penalties_that_are_not_told_apart_the_largest_is_taken() {
        // The second is lowest; the third is worse by 0.01 with an error of the same size, the
        // fourth by far.
        let losses =
            [vec![0.5, 0.6, 0.7], vec![0.4, 0.5, 0.6], vec![0.4, 0.5, 0.63], vec![0.6, 0.7, 0.8]];
        assert_eq!(largest_not_told_apart(&losses), 2);
        assert_eq!(largest_not_told_apart(&losses[..2]), 1);
        assert_eq!(largest_not_told_apart(&[losses[1].clone(), losses[3].clone()]), 0);
    }
}
