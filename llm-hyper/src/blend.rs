//! A blend of weight sources, learned on retired ads that are treated as cold (ours).
//!
//! Every source's logits enter one small logistic regression over the impressions of retired ads,
//! for which each source wrote weights without seeing them (leave one ad out). The regression's
//! coefficients multiply the sources' weights. The penalty draws the coefficients towards the
//! best single source, so few ads give that source and not noise.

use common::rng::Seed;
use common::{Error, Result, metrics};
use ndarray::Array2;

use crate::model::logit::{dot, logit, probability};
use crate::model::prior::Prior;

/// One retired ad treated as cold.
#[derive(Debug, Clone)]
pub struct Example {
    /// One weight vector per source.
    pub sources: Vec<Vec<f64>>,
    /// Calibrated intercept of each source.
    pub biases: Vec<f64>,
    /// p̄ that the intercepts aim at.
    pub rate: f64,
    /// (rows, features) of its impressions.
    pub features: Array2<f64>,
    /// Clicks of its impressions.
    pub clicked: Vec<bool>,
}

/// Learned coefficients.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Blend {
    /// One per source.
    pub coefficients: Vec<f64>,
    /// Index of the source that is best alone on the retired ads; the coefficients' prior is 1
    /// there and 0 elsewhere.
    pub best_alone: usize,
    /// Penalty that cross-validation over ads chose.
    pub penalty: f64,
}

/// Penalties tried, in impressions: the last leaves the best single source as it is.
const PENALTIES: [f64; 5] = [1.0, 30.0, 300.0, 3_000.0, 1e9];
const FOLDS: usize = 5;

impl Blend {
    /// Learns from `examples`; the penalty is chosen by 5-fold cross-validation over ads.
    ///
    /// # Errors
    /// [`Error::Data`] with fewer than five examples.
    pub fn fit(examples: &[Example], seed: Seed) -> Result<Self> {
        if examples.len() < FOLDS {
            return Err(Error::data(
                format!("{} retired ads", examples.len()),
                format!("at least {FOLDS} to learn a blend from"),
            ));
        }
        let order = seed.stream("blend/folds").permutation(examples.len());
        let losses: Vec<Result<f64>> = PENALTIES
            .iter()
            .map(|&penalty| {
                let mut loss = 0.0;
                for fold in 0..FOLDS {
                    let part = |inside: bool| -> Vec<&Example> {
                        let here = order.iter().enumerate();
                        here.filter(|(at, _)| (at % FOLDS == fold) == inside)
                            .map(|(_, &ad)| &examples[ad])
                            .collect()
                    };
                    let blend = Self::at(&part(false), penalty)?;
                    loss += part(true).iter().map(|ad| ad_loss(&blend, ad)).sum::<f64>();
                }
                Ok(loss)
            })
            .collect();
        let mut best = (f64::INFINITY, PENALTIES[PENALTIES.len() - 1]);
        for (loss, &penalty) in losses.into_iter().zip(&PENALTIES) {
            let loss = loss?;
            if loss <= best.0 {
                best = (loss, penalty);
            }
        }
        let all: Vec<&Example> = examples.iter().collect();
        Self::at(&all, best.1)
    }

    fn at(examples: &[&Example], penalty: f64) -> Result<Self> {
        let sources = examples.first().map_or(0, |ad| ad.sources.len());
        let alone = |source: usize| {
            let mut one = vec![0.0; sources];
            one[source] = 1.0;
            let blend = Self { coefficients: one, best_alone: source, penalty };
            examples.iter().map(|ad| ad_loss(&blend, ad)).sum::<f64>()
        };
        let best_alone = (0..sources)
            .min_by(|&a, &b| alone(a).total_cmp(&alone(b)))
            .ok_or_else(|| Error::data("no source of weights", "at least one"))?;
        let rows: usize = examples.iter().map(|ad| ad.clicked.len()).sum();
        let mut design = Array2::zeros((rows, sources + 1));
        let mut labels = Vec::with_capacity(rows);
        for ad in examples {
            for (x, &clicked) in ad.features.rows().into_iter().zip(&ad.clicked) {
                let x = x.to_vec();
                let row = labels.len();
                for source in 0..sources {
                    // Logits around p̄, so that coefficients scale what a source says of users.
                    design[[row, source]] =
                        dot(&ad.sources[source], &x) + ad.biases[source] - logit(ad.rate);
                }
                design[[row, sources]] = logit(ad.rate);
                labels.push(clicked);
            }
        }
        let mut mean = vec![0.0; sources + 1];
        (mean[best_alone], mean[sources]) = (1.0, 1.0);
        let prior = Prior { weights: mean, bias: 0.0, precision: penalty, bias_precision: 1.0 };
        let posterior = prior.update(design.view(), &labels)?;
        let coefficients = posterior.weights[..sources].to_vec();
        Ok(Self { coefficients, best_alone, penalty })
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

/// Mean log loss of one ad under the blend, its intercept by Eq. 6 on the ad's own users (no
/// labels), so that every ad counts the same.
fn ad_loss(blend: &Blend, ad: &Example) -> f64 {
    let weights = blend.weights(&ad.sources);
    let rows: Vec<Vec<f64>> = ad.features.rows().into_iter().map(|x| x.to_vec()).collect();
    let logits: Vec<f64> = rows.iter().map(|x| dot(&weights, x)).collect();
    let Ok(bias) = crate::model::intercept::solve(&logits, ad.rate) else { return f64::INFINITY };
    let p: Vec<f64> = rows.iter().map(|x| probability(&weights, bias, x)).collect();
    metrics::log_loss(&ad.clicked, &p, None)
}
