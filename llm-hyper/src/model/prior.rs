//! Eq. 7: weights that somebody wrote (an LLM, a neighbour, a median) as the prior mean of a
//! Bayesian logistic regression, which the ad's first impressions then correct.

use common::rng::Stream;
use common::{Error, Result};
use ndarray::{Array1, Array2, ArrayView2, s};

use super::linear::Cholesky;
use super::logit::sigmoid;

/// A normal prior over weights and intercept.
#[derive(Debug, Clone, PartialEq)]
pub struct Prior {
    /// Prior mean of the weights.
    pub weights: Vec<f64>,
    /// Prior mean of the intercept.
    pub bias: f64,
    /// λ of Eq. 7: inverse variance of each weight, above 0.
    pub precision: f64,
    /// Inverse variance of the intercept, above 0.
    pub bias_precision: f64,
}

/// Normal approximation of the posterior at its mode (Laplace).
#[derive(Debug, Clone)]
pub struct Posterior {
    /// Mode of the weights.
    pub weights: Vec<f64>,
    /// Mode of the intercept.
    pub bias: f64,
    /// Factor of the inverse covariance of (weights, intercept).
    precision: Cholesky,
}

impl Prior {
    /// Eq. 7: minimises Σ log loss + (λ/2) ‖w − w₀‖² + (λ_b/2) (b − b₀)² by Newton's method with
    /// step halving. `features` is (rows, features); without rows the prior comes back.
    ///
    /// # Errors
    /// [`Error::Data`] on other lengths or values that are not finite, [`Error::Usage`] on a
    /// precision that is not positive.
    pub fn update(&self, features: ArrayView2<'_, f64>, labels: &[bool]) -> Result<Posterior> {
        let (rows, width) = features.dim();
        if rows != labels.len() || width != self.weights.len() {
            return Err(Error::data(
                format!("{rows} rows of {width} features with {} labels", labels.len()),
                format!("one label per row and {} features", self.weights.len()),
            ));
        }
        if !(self.precision > 0.0 && self.bias_precision > 0.0) {
            return Err(Error::usage(format!(
                "prior precisions {} and {}: expected numbers above 0",
                self.precision, self.bias_precision
            )));
        }
        if features.iter().any(|x| !x.is_finite()) {
            return Err(Error::data("a feature that is not finite", "finite features"));
        }
        let mut design = Array2::ones((rows, width + 1));
        design.slice_mut(s![.., ..width]).assign(&features);
        let targets: Array1<f64> = labels.iter().map(|&l| f64::from(u8::from(l))).collect();
        let mean: Array1<f64> =
            self.weights.iter().copied().chain(std::iter::once(self.bias)).collect();
        let precision: Array1<f64> = (0..=width)
            .map(|j| if j < width { self.precision } else { self.bias_precision })
            .collect();
        let objective = |theta: &Array1<f64>| -> f64 {
            let loss: f64 = design
                .dot(theta)
                .iter()
                .zip(&targets)
                .map(|(z, t)| z.max(0.0) + (-z.abs()).exp().ln_1p() - t * z)
                .sum();
            let away = theta - &mean;
            loss + 0.5 * (&away * &away * &precision).sum()
        };
        let mut theta = mean.clone();
        let mut value = objective(&theta);
        let mut factor = None;
        for _ in 0..100 {
            let p = design.dot(&theta).mapv(sigmoid);
            let gradient = design.t().dot(&(&p - &targets)) + (&theta - &mean) * &precision;
            let curvature = p.mapv(|p| p * (1.0 - p));
            let mut weighted = design.clone();
            for (mut row, c) in weighted.rows_mut().into_iter().zip(&curvature) {
                row *= *c;
            }
            let mut hessian = design.t().dot(&weighted);
            for j in 0..=width {
                hessian[[j, j]] += precision[j];
            }
            let cholesky = Cholesky::new(hessian.view())?;
            let step = cholesky.solve(gradient.view());
            factor = Some(cholesky);
            if gradient.iter().fold(0.0f64, |top, g| top.max(g.abs())) < 1e-9 * (rows as f64 + 1.0)
            {
                break;
            }
            let mut length = 1.0;
            let moved = loop {
                let next = &theta - &(&step * length);
                let at = objective(&next);
                if at <= value + 1e-12 * value.abs() {
                    theta = next;
                    value = at;
                    break true;
                }
                length *= 0.5;
                if length < 1e-10 {
                    break false;
                }
            };
            if !moved {
                break;
            }
        }
        let precision = factor.ok_or_else(|| Error::Bug("no Newton step was taken".into()))?;
        Ok(Posterior { weights: theta.slice(s![..width]).to_vec(), bias: theta[width], precision })
    }
}

impl Posterior {
    /// A draw of (weights, intercept), for Thompson sampling.
    pub fn sample(&self, stream: &mut Stream) -> (Vec<f64>, f64) {
        let width = self.weights.len();
        let noise: Array1<f64> = (0..=width).map(|_| stream.normal()).collect();
        let away = self.precision.back(noise);
        let weights = self.weights.iter().zip(&away).map(|(w, a)| w + a).collect();
        (weights, self.bias + away[width])
    }

    /// Posterior standard deviation of each weight.
    pub fn sd(&self) -> Vec<f64> {
        let covariance = self.precision.inverse();
        (0..self.weights.len()).map(|j| covariance[[j, j]].sqrt()).collect()
    }
}
