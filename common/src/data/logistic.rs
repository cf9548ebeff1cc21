//! L2-regularised logistic regression, binary and multinomial, on dense features.
//!
//! Minimises `C · Σ_i s_i · loss_i + ½ ‖W‖²` over weights and intercepts, where `loss_i` is the
//! log loss of row i and `s_i` its weight; intercepts are not penalised (scikit-learn's
//! objective). Newton's method with conjugate gradients for the step (Lin, Weng and Keerthi 2008)
//! needs only products with the Hessian, so it serves two classes and many alike.

use ndarray::{Array1, Array2, ArrayView2, Axis, s};

use crate::{Error, Result};

/// How [`LogisticRegression`] is fitted.
#[derive(
    Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct LogisticOptions {
    /// Inverse strength of the penalty, above 0. Default 1.
    pub c: f64,
    /// Newton steps at most. Default 100.
    pub max_steps: usize,
    /// Done when the largest entry of the objective's gradient is below this times `max(1, C · Σ s)`.
    /// Default 1e-8.
    pub tolerance: f64,
}

impl Default for LogisticOptions {
    fn default() -> Self {
        Self { c: 1.0, max_steps: 100, tolerance: 1e-8 }
    }
}

/// A fitted classifier.
///
/// ```
/// use common::logistic::{LogisticOptions, LogisticRegression};
/// use ndarray::array;
/// let features = array![[0.0], [1.0], [2.0], [3.0]];
/// let model = LogisticRegression::fit_binary(
///     features.view(),
///     &[false, false, true, true],
///     None,
///     LogisticOptions::default(),
/// )?;
/// assert!(model.probabilities(array![[3.0]].view())?[[0, 1]] > 0.5);
/// # Ok::<(), common::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LogisticRegression {
    /// (1, features) for two classes fitted by [`Self::fit_binary`], else (classes, features).
    pub weights: Array2<f64>,
    /// One per row of `weights`.
    pub intercepts: Array1<f64>,
    /// Newton steps taken.
    pub steps: usize,
}

impl LogisticRegression {
    /// One logit for the positive class. `features` is (rows, features); `sample_weights` has one
    /// non-negative weight per row.
    ///
    /// Fails with [`Error::Data`] on lengths that differ, values that are not finite, no rows, or
    /// one class only.
    pub fn fit_binary(
        features: ArrayView2<'_, f64>,
        labels: &[bool],
        sample_weights: Option<&[f64]>,
        options: LogisticOptions,
    ) -> Result<Self> {
        let classes: Vec<usize> = labels.iter().map(|&label| usize::from(label)).collect();
        Problem::new(features, &classes, 2, 1, sample_weights, options)?.solve()
    }

    /// One logit per class, softmax over `classes` ≥ 2 classes; labels are below `classes`. A
    /// class without rows gets a low probability. Two classes give half the weights of
    /// [`Self::fit_binary`] at half its `C`.
    ///
    /// Fails like [`Self::fit_binary`].
    pub fn fit(
        features: ArrayView2<'_, f64>,
        labels: &[usize],
        classes: usize,
        sample_weights: Option<&[f64]>,
        options: LogisticOptions,
    ) -> Result<Self> {
        Problem::new(features, labels, classes, classes, sample_weights, options)?.solve()
    }

    /// (rows, classes) probabilities; each row sums to 1.
    ///
    /// Fails with [`Error::Data`] when the number of features is another one than fitted.
    pub fn probabilities(&self, features: ArrayView2<'_, f64>) -> Result<Array2<f64>> {
        if features.ncols() != self.weights.ncols() {
            return Err(Error::data(
                format!("{} features", features.ncols()),
                format!("the {} features of the fit", self.weights.ncols()),
            ));
        }
        let mut logits = features.dot(&self.weights.t()) + &self.intercepts;
        if logits.ncols() == 1 {
            let positive = logits.mapv(sigmoid);
            let mut both = Array2::zeros((positive.nrows(), 2));
            both.slice_mut(s![.., 1..]).assign(&positive);
            both.slice_mut(s![.., ..1]).assign(&(1.0 - positive));
            return Ok(both);
        }
        softmax_rows(&mut logits);
        Ok(logits)
    }

    /// The most probable class of each row, the lowest of equals.
    ///
    /// Fails like [`Self::probabilities`].
    pub fn predict(&self, features: ArrayView2<'_, f64>) -> Result<Vec<usize>> {
        let probabilities = self.probabilities(features)?;
        Ok(probabilities
            .rows()
            .into_iter()
            .map(|row| {
                let mut best = 0;
                for (class, value) in row.iter().enumerate() {
                    if *value > row[best] {
                        best = class;
                    }
                }
                best
            })
            .collect())
    }
}

/// Data and targets of one fit. Parameters are one (outputs, features + 1) matrix whose last
/// column holds the intercepts.
struct Problem<'a> {
    features: ArrayView2<'a, f64>,
    /// (rows, outputs), 1 at the label.
    targets: Array2<f64>,
    /// (rows, 1), C times the sample weight.
    scale: Array2<f64>,
    options: LogisticOptions,
}

impl<'a> Problem<'a> {
    fn new(
        features: ArrayView2<'a, f64>,
        labels: &[usize],
        classes: usize,
        outputs: usize,
        sample_weights: Option<&[f64]>,
        options: LogisticOptions,
    ) -> Result<Self> {
        let rows = features.nrows();
        if rows == 0 || labels.len() != rows {
            return Err(Error::data(
                format!("{} labels for {rows} rows", labels.len()),
                "one label per row, and at least one row",
            ));
        }
        if let Some(label) = labels.iter().find(|&&label| label >= classes) {
            return Err(Error::data(format!("class {label}"), format!("classes below {classes}")));
        }
        if labels.iter().all(|&label| label == labels[0]) {
            return Err(Error::data("labels of one class", "at least two classes to tell apart"));
        }
        if let Some(value) = features.iter().find(|value| !value.is_finite()) {
            return Err(Error::data(format!("the feature value {value}"), "finite features"));
        }
        if !(options.c.is_finite() && options.c > 0.0) {
            return Err(Error::usage(format!("C = {}: expected a number above 0", options.c)));
        }
        let mut scale = Array2::from_elem((rows, 1), options.c);
        if let Some(weights) = sample_weights {
            let bad = weights.iter().find(|weight| !(weight.is_finite() && **weight >= 0.0));
            if weights.len() != rows || bad.is_some() {
                return Err(Error::data(
                    bad.map_or(format!("{} sample weights", weights.len()), |w| {
                        format!("weight {w}")
                    }),
                    format!("{rows} non-negative sample weights"),
                ));
            }
            scale
                .column_mut(0)
                .iter_mut()
                .zip(weights)
                .for_each(|(scale, weight)| *scale *= weight);
        }
        let mut targets = Array2::zeros((rows, outputs));
        for (row, &label) in labels.iter().enumerate() {
            if outputs > 1 {
                targets[[row, label]] = 1.0;
            } else {
                targets[[row, 0]] = label as f64;
            }
        }
        Ok(Self { features, targets, scale, options })
    }

    /// (rows, outputs)
    fn logits(&self, parameters: &Array2<f64>) -> Array2<f64> {
        let last = parameters.ncols() - 1;
        self.features.dot(&parameters.slice(s![.., ..last]).t()) + parameters.column(last)
    }

    /// Probabilities of `logits` and the objective.
    fn evaluate(&self, parameters: &Array2<f64>) -> (Array2<f64>, f64) {
        let logits = self.logits(parameters);
        let mut probabilities = logits.clone();
        let mut loss = 0.0;
        if logits.ncols() == 1 {
            probabilities.mapv_inplace(sigmoid);
            for ((z, t), scale) in logits.iter().zip(&self.targets).zip(&self.scale) {
                // −t ln p − (1 − t) ln(1 − p) = ln(1 + e^z) − t z
                loss += scale * (z.max(0.0) + (-z.abs()).exp().ln_1p() - t * z);
            }
        } else {
            let log_sums = softmax_rows(&mut probabilities);
            for (row, log_sum) in log_sums.iter().enumerate() {
                let own = logits.row(row).dot(&self.targets.row(row));
                loss += self.scale[[row, 0]] * (log_sum - own);
            }
        }
        let last = parameters.ncols() - 1;
        let weights = parameters.slice(s![.., ..last]);
        (probabilities, loss + 0.5 * weights.iter().map(|w| w * w).sum::<f64>())
    }

    /// `residualsᵀ · [features, 1]` plus the penalty's part, (outputs, features + 1).
    fn pull_back(&self, residuals: &Array2<f64>, penalised: &Array2<f64>) -> Array2<f64> {
        let last = penalised.ncols() - 1;
        let mut result = penalised.clone();
        result.column_mut(last).fill(0.0);
        let mut weights = result.slice_mut(s![.., ..last]);
        weights += &residuals.t().dot(&self.features);
        let mut intercepts = result.column_mut(last);
        intercepts += &residuals.sum_axis(Axis(0));
        result
    }

    /// Hessian times `direction` at `probabilities`.
    fn hessian(&self, probabilities: &Array2<f64>, direction: &Array2<f64>) -> Array2<f64> {
        let moved = self.logits(direction);
        let mut residuals = &moved * probabilities;
        if probabilities.ncols() == 1 {
            residuals *= &(1.0 - probabilities);
        } else {
            let mean = residuals.sum_axis(Axis(1)).insert_axis(Axis(1));
            residuals -= &(probabilities * &mean);
        }
        residuals *= &self.scale;
        self.pull_back(&residuals, direction)
    }

    fn solve(&self) -> Result<LogisticRegression> {
        let outputs = self.targets.ncols();
        let mut parameters = Array2::<f64>::zeros((outputs, self.features.ncols() + 1));
        let (mut probabilities, mut objective) = self.evaluate(&parameters);
        let goal = self.options.tolerance * self.scale.sum().max(1.0);
        let mut steps = 0;
        while steps < self.options.max_steps {
            let residuals = (&probabilities - &self.targets) * &self.scale;
            let gradient = self.pull_back(&residuals, &parameters);
            let largest = gradient.iter().fold(0.0f64, |largest, g| largest.max(g.abs()));
            if largest <= goal {
                break;
            }
            steps += 1;
            let step = self.newton_step(&probabilities, &gradient);
            let slope = (&gradient * &step).sum();
            // Near the optimum the objective is flat to rounding; a full step is right there.
            let slack = 1e-13 * objective.abs().max(1.0);
            let mut length = 1.0;
            loop {
                let next = &parameters + &(&step * length);
                let (p, value) = self.evaluate(&next);
                if value <= objective + 1e-4 * length * slope + slack {
                    (parameters, probabilities, objective) = (next, p, value);
                    break;
                }
                length /= 2.0;
                if length < 1e-12 {
                    // No descent left in floating point: this is the optimum to rounding.
                    return Ok(split(parameters, steps));
                }
            }
        }
        Ok(split(parameters, steps))
    }

    /// Conjugate gradients on `H · step = −gradient`, stopped at a residual that shrinks with the
    /// gradient, so that the outer steps converge superlinearly.
    fn newton_step(&self, probabilities: &Array2<f64>, gradient: &Array2<f64>) -> Array2<f64> {
        let mut step = Array2::zeros(gradient.dim());
        let mut residual = -gradient;
        let mut direction = residual.clone();
        let mut size = (&residual * &residual).sum();
        let start = size.sqrt();
        let goal = start * start.sqrt().min(0.1);
        for _ in 0..(2 * gradient.len()).min(500) {
            let curved = self.hessian(probabilities, &direction);
            let curvature = (&direction * &curved).sum();
            if curvature <= 0.0 {
                break;
            }
            let length = size / curvature;
            step.scaled_add(length, &direction);
            residual.scaled_add(-length, &curved);
            let next = (&residual * &residual).sum();
            if next.sqrt() <= goal {
                break;
            }
            direction = &residual + &(&direction * (next / size));
            size = next;
        }
        step
    }
}

fn split(parameters: Array2<f64>, steps: usize) -> LogisticRegression {
    let last = parameters.ncols() - 1;
    LogisticRegression {
        weights: parameters.slice(s![.., ..last]).to_owned(),
        intercepts: parameters.column(last).to_owned(),
        steps,
    }
}

fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// Softmax of each row in place; returns the log of each row's sum of exponentials.
fn softmax_rows(logits: &mut Array2<f64>) -> Vec<f64> {
    logits
        .rows_mut()
        .into_iter()
        .map(|mut row| {
            let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.mapv_inplace(|z| (z - highest).exp());
            let sum = row.sum();
            row /= sum;
            highest + sum.ln()
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn two_softmax_classes_equal_the_binary_fit() {
        let features = array![[0.0, 1.0], [1.0, -1.0], [2.0, 0.5], [3.0, 1.0], [1.5, 2.0]];
        let labels = [0, 0, 1, 1, 0];
        let flags = labels.map(|label| label == 1);
        let options = LogisticOptions { tolerance: 1e-12, ..LogisticOptions::default() };
        let binary =
            LogisticRegression::fit_binary(features.view(), &flags, None, options).unwrap();
        // ‖W‖² of ±w/2 is half of ‖w‖², so half the C gives the same objective up to a factor.
        let half = LogisticOptions { c: 0.5, ..options };
        let softmax = LogisticRegression::fit(features.view(), &labels, 2, None, half).unwrap();
        let a = binary.probabilities(features.view()).unwrap();
        let b = softmax.probabilities(features.view()).unwrap();
        assert!((&a - &b).iter().all(|difference| difference.abs() < 1e-9), "{a} {b}");
    }

    #[test]
    fn bad_input_is_named() {
        let features = array![[0.0], [f64::NAN]];
        let fit = |labels: &[bool]| {
            LogisticRegression::fit_binary(
                features.view(),
                labels,
                None,
                LogisticOptions::default(),
            )
        };
        assert!(fit(&[true, false]).unwrap_err().to_string().contains("NaN"));
        assert!(fit(&[true]).unwrap_err().to_string().contains("1 labels for 2 rows"));
        assert!(fit(&[true, true]).unwrap_err().to_string().contains("one class"));
    }
}
