//! Maps from scores to probabilities: Platt's sigmoid and isotonic regression.

use crate::{Error, Result};

/// Platt scaling: `P(1 | score) = 1 / (1 + exp(a · score + b))` (Platt 1999; a is negative when
/// higher scores mean more positives).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Platt {
    /// Slope.
    pub a: f64,
    /// Offset.
    pub b: f64,
}

impl Platt {
    /// Minimises the log loss against Platt's smoothed targets `(n₁ + 1) / (n₁ + 2)` and
    /// `1 / (n₀ + 2)` by Newton's method with step halving (Lin, Lin and Weng 2007).
    ///
    /// Fails with [`Error::Data`] without items or when a score is not finite.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn fit(scores: &[f64], labels: &[bool]) -> Result<Self> {
        check(scores, labels.len())?;
        let positives = labels.iter().filter(|&&label| label).count() as f64;
        let negatives = labels.len() as f64 - positives;
        let target = |label: bool| {
            if label { (positives + 1.0) / (positives + 2.0) } else { 1.0 / (negatives + 2.0) }
        };
        let points: Vec<(f64, f64)> =
            scores.iter().zip(labels).map(|(&score, &label)| (score, target(label))).collect();
        let loss = |a: f64, b: f64| -> f64 {
            // −t ln p − (1 − t) ln(1 − p) with p = 1 / (1 + e^z) is t z + ln(1 + e^−z).
            points
                .iter()
                .map(|&(score, t)| {
                    let z = a * score + b;
                    t * z + softplus(-z)
                })
                .sum()
        };
        let (mut a, mut b) = (0.0, ((negatives + 1.0) / (positives + 1.0)).ln());
        let mut current = loss(a, b);
        for _ in 0..100 {
            let [mut ga, mut gb, mut haa, mut hab, mut hbb] = [0.0, 0.0, 1e-12, 0.0, 1e-12];
            for &(score, t) in &points {
                let p = 1.0 / (1.0 + (a * score + b).exp());
                let (gradient, curvature) = (t - p, p * (1.0 - p));
                ga += gradient * score;
                gb += gradient;
                haa += curvature * score * score;
                hab += curvature * score;
                hbb += curvature;
            }
            let determinant = haa * hbb - hab * hab;
            let step = [(hab * gb - hbb * ga) / determinant, (hab * ga - haa * gb) / determinant];
            if !step.iter().all(|value| value.is_finite()) {
                break;
            }
            let mut length = 1.0;
            let slope = ga * step[0] + gb * step[1];
            // Near the optimum the loss is flat to rounding; a full Newton step is right there.
            let slack = 1e-13 * current.abs().max(1.0);
            while length > 1e-10 {
                let next = loss(a + length * step[0], b + length * step[1]);
                if next <= current + 1e-4 * length * slope + slack {
                    break;
                }
                length /= 2.0;
            }
            (a, b) = (a + length * step[0], b + length * step[1]);
            current = loss(a, b);
            let size =
                |step: f64, value: f64| (length * step).abs() <= 1e-14 * value.abs().max(1.0);
            if size(step[0], a) && size(step[1], b) {
                break;
            }
        }
        Ok(Self { a, b })
    }

    /// Probability of the positive class.
    pub fn probability(&self, score: f64) -> f64 {
        1.0 / (1.0 + (self.a * score + self.b).exp())
    }
}

/// `ln(1 + e^x)` without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Isotonic regression: the non-decreasing step-wise linear map with the least weighted squared
/// error, clipped to `[0, 1]`; outside the fitted scores it is constant.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Isotonic {
    /// Ascending scores between which the map is linear.
    pub thresholds: Vec<f64>,
    /// Value at each threshold.
    pub values: Vec<f64>,
}

impl Isotonic {
    /// Averages the labels of equal scores, then pools adjacent violators.
    ///
    /// Fails with [`Error::Data`] without items, when a score is not finite or a weight is not
    /// positive and finite.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn fit(scores: &[f64], labels: &[f64], weights: Option<&[f64]>) -> Result<Self> {
        check(scores, labels.len())?;
        if let Some(weights) = weights {
            assert_eq!(weights.len(), scores.len(), "one weight per score");
            if let Some(weight) =
                weights.iter().find(|weight| !(weight.is_finite() && **weight > 0.0))
            {
                return Err(Error::data(format!("the weight {weight}"), "positive finite weights"));
            }
        }
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let mut points: Vec<(f64, Block)> = Vec::new();
        for tied in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
            let weight_of = |index: usize| weights.map_or(1.0, |weights| weights[index]);
            let weight: f64 = tied.iter().map(|&index| weight_of(index)).sum();
            let sum: f64 = tied.iter().map(|&index| weight_of(index) * labels[index]).sum();
            points.push((scores[tied[0]], Block { sum, weight, size: 1 }));
        }
        let mut blocks: Vec<Block> = Vec::new();
        for (_, point) in &points {
            let mut block = *point;
            while let Some(last) = blocks.last().filter(|last| last.mean() >= block.mean()) {
                block = last.join(block);
                blocks.pop();
            }
            blocks.push(block);
        }
        // Only the two ends of a block carry information.
        let (mut thresholds, mut values) = (Vec::new(), Vec::new());
        let mut start = 0;
        for block in blocks {
            let value = block.mean().clamp(0.0, 1.0);
            let end = start + block.size - 1;
            for index in if start == end { start..=start } else { start..=end } {
                if index == start || index == end {
                    thresholds.push(points[index].0);
                    values.push(value);
                }
            }
            start = end + 1;
        }
        Ok(Self { thresholds, values })
    }

    /// Calibrated probability of a score.
    pub fn probability(&self, score: f64) -> f64 {
        let after = self.thresholds.partition_point(|&threshold| threshold <= score);
        if after == 0 {
            return self.values[0];
        }
        if after == self.thresholds.len() {
            return self.values[after - 1];
        }
        let (x0, x1) = (self.thresholds[after - 1], self.thresholds[after]);
        let (y0, y1) = (self.values[after - 1], self.values[after]);
        y0 + (y1 - y0) * (score - x0) / (x1 - x0)
    }
}

/// Adjacent scores with one common value.
#[derive(Clone, Copy)]
struct Block {
    sum: f64,
    weight: f64,
    size: usize,
}

impl Block {
    fn mean(self) -> f64 {
        self.sum / self.weight
    }

    fn join(self, next: Self) -> Self {
        Self {
            sum: self.sum + next.sum,
            weight: self.weight + next.weight,
            size: self.size + next.size,
        }
    }
}

fn check(scores: &[f64], labels: usize) -> Result<()> {
    assert_eq!(scores.len(), labels, "one label per score");
    if scores.is_empty() {
        return Err(Error::data("no scores", "at least one to fit a calibration"));
    }
    match scores.iter().find(|score| !score.is_finite()) {
        Some(score) => Err(Error::data(format!("the score {score}"), "finite scores")),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn isotonic_pools_violators() {
        let fitted = Isotonic::fit(&[1.0, 2.0, 3.0, 4.0], &[0.0, 1.0, 0.0, 1.0], None).unwrap();
        assert_eq!(fitted.thresholds, [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(fitted.values, [0.0, 0.5, 0.5, 1.0]);
        assert_eq!(fitted.probability(1.5), 0.25);
        assert_eq!((fitted.probability(-9.0), fitted.probability(9.0)), (0.0, 1.0));
    }

    #[test]
    fn one_class_does_not_diverge() {
        let platt = Platt::fit(&[0.1, 0.5, 0.9], &[true; 3]).unwrap();
        assert!((platt.probability(0.5) - 0.8).abs() < 1e-6, "{platt:?}");
        let constant = Platt::fit(&[0.5; 4], &[true, false, true, false]).unwrap();
        assert!((constant.probability(0.5) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn bad_scores_are_refused() {
        assert_eq!(Platt::fit(&[], &[]).unwrap_err().exit_code(), 3);
        assert_eq!(Platt::fit(&[f64::NAN], &[true]).unwrap_err().exit_code(), 3);
        assert!(Isotonic::fit(&[1.0], &[1.0], Some(&[0.0])).is_err());
    }
}
