//! Rewards and the losses of reward feedback learning (Eqs. 6 to 11).

use candle_core::Tensor;
use common::{Result, ops};
use serde::{Deserialize, Serialize};

/// Mean and deviation that make a score comparable with others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Standard {
    /// μ.
    pub mean: f64,
    /// σ.
    pub sd: f64,
}

impl Standard {
    /// ImageReward's constants (Eq. 9).
    pub const IMAGE_REWARD: Self = Self { mean: 0.16717, sd: 1.03334 };

    /// Of a sample of scores; a constant sample gets σ = 1.
    pub fn of(values: &[f64]) -> Self {
        let (mean, sd) = common::stats::mean_sd(values);
        Self { mean, sd: if sd.is_finite() && sd > 1e-9 { sd } else { 1.0 } }
    }

    /// `(r - μ) / σ`.
    pub fn apply(&self, raw: &Tensor) -> Result<Tensor> {
        Ok(raw.affine(1.0 / self.sd, -self.mean / self.sd)?)
    }
}

/// Eq. 10: the weighted sum of standardised scores `[n]`.
pub fn combine(scores: &[(f64, Standard, Tensor)]) -> Result<Option<Tensor>> {
    let mut total: Option<Tensor> = None;
    for (weight, standard, raw) in scores {
        let part = (standard.apply(raw)? * *weight)?;
        total = Some(match total {
            Some(sum) => (sum + part)?,
            None => part,
        });
    }
    Ok(total)
}

/// Eq. 6: `λ · mean(ReLU(b - r))`.
pub fn reward_loss(reward: &Tensor, lambda: f64, target: f64) -> Result<Tensor> {
    Ok((reward.affine(-1.0, target)?.relu()?.mean_all()? * lambda)?)
}

/// Eq. 11: mean squared distance to the answer of the model before tuning; up to a factor the KL
/// divergence of the two reverse steps. No gradient goes to `before`.
pub fn anchor_loss(answer: &Tensor, before: &Tensor) -> Result<Tensor> {
    Ok(ops::mean_squared_error(answer, &before.detach())?)
}
