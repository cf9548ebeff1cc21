//! Learning rates over time, and the moving average of parameters.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::nn::Parameters;

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleShape {
    /// Stays at the peak.
    Constant,
    /// Falls linearly to 0 at `total` steps.
    Linear {
        /// Steps in all, warm-up included.
        total: u64,
    },
    /// Falls along half a cosine to 0 at `total` steps.
    Cosine {
        /// Steps in all, warm-up included.
        total: u64,
    },
    /// Falls with `√(warm-up / step)` (10,000 steps where there is no warm-up).
    InverseSqrt,
}

/// A learning rate that rises linearly from 0 over `warmup` steps, then follows `shape`; equal to
/// the schedules of transformers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Highest learning rate.
    pub peak: f64,
    /// Steps of the linear rise; 0 for none.
    pub warmup: u64,
    /// What follows.
    pub shape: ScheduleShape,
}

impl Schedule {
    /// The learning rate of step `step` (the first is 0).
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let left = |total: u64| {
            let span = total.saturating_sub(self.warmup).max(1) as f64;
            1.0 - ((step - self.warmup) as f64 / span).min(1.0)
        };
        self.peak
            * match self.shape {
                ScheduleShape::Constant => 1.0,
                ScheduleShape::Linear { total } => left(total),
                ScheduleShape::Cosine { total } => {
                    0.5 * (1.0 + (std::f64::consts::PI * (1.0 - left(total))).cos())
                }
                ScheduleShape::InverseSqrt => {
                    let scale = if self.warmup == 0 { 10_000 } else { self.warmup };
                    let shifted = step + scale - self.warmup;
                    (scale as f64 / shifted as f64).sqrt()
                }
            }
    }
}

/// Exponential moving average of parameters: `average = decay · average + (1 - decay) · value`.
#[derive(Debug, Clone)]
pub struct Ema {
    decay: f64,
    average: BTreeMap<String, Tensor>,
}

impl Ema {
    /// Starts at the present values; `decay` in `[0, 1)`.
    pub fn new(parameters: &Parameters, decay: f64) -> Result<Self> {
        let copy = |(name, tensor): (String, Tensor)| Ok((name, tensor.copy()?));
        let average = parameters.tensors().into_iter().map(copy).collect::<Result<_>>()?;
        Ok(Self { decay, average })
    }

    /// Takes in the present values.
    pub fn update(&mut self, parameters: &Parameters) -> Result<()> {
        for (name, var) in parameters.iter() {
            if let Some(average) = self.average.get_mut(name) {
                let fresh = (var.as_tensor().detach() * (1.0 - self.decay))?;
                *average = ((&*average * self.decay)? + fresh)?;
            }
        }
        Ok(())
    }

    /// The averages by name; [`Parameters::load`] puts them into a model.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.average
    }

    /// Continues with saved averages.
    pub fn load(&mut self, average: BTreeMap<String, Tensor>) {
        self.average = average;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_meet_their_corner_points() {
        let at = |warmup, shape, step| Schedule { peak: 2.0, warmup, shape }.at(step);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} is not {b}");
        close(at(4, ScheduleShape::Constant, 0), 0.0);
        close(at(4, ScheduleShape::Constant, 1), 0.5);
        close(at(4, ScheduleShape::Constant, 400), 2.0);
        close(at(0, ScheduleShape::Linear { total: 10 }, 5), 1.0);
        close(at(2, ScheduleShape::Linear { total: 10 }, 12), 0.0);
        close(at(2, ScheduleShape::Cosine { total: 10 }, 6), 1.0);
        close(at(2, ScheduleShape::Cosine { total: 10 }, 10), 0.0);
        close(at(100, ScheduleShape::InverseSqrt, 400), 1.0);
        close(at(0, ScheduleShape::InverseSqrt, 30_000), 1.0);
    }
}
