//! Noise schedules of Gaussian diffusion, computed in f64.

use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How noise grows with time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Beta {
    /// β linear from 0.00085 to 0.012.
    Linear,
    /// √β linear (Stable Diffusion), 0.00085 to 0.012.
    ScaledLinear,
    /// ᾱ along a squared cosine (Nichol and Dhariwal 2021), β at most 0.999.
    #[default]
    SquaredCosine,
}

/// What a denoiser predicts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise ε.
    Epsilon,
    /// v = √ᾱ ε − √(1−ᾱ) z₀ (Salimans and Ho 2022).
    #[default]
    Velocity,
    /// z₀.
    Sample,
}

/// ᾱ over `steps` training steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    betas: Vec<f64>,
    alphas: Vec<f64>,
}

impl Schedule {
    /// A schedule of `steps` training steps.
    pub fn new(beta: Beta, steps: usize) -> Self {
        Self::between(beta, steps, 0.00085, 0.012)
    }

    /// [`Schedule::new`] with other ends of β; the squared cosine has none.
    pub fn between(beta: Beta, steps: usize, first: f64, last: f64) -> Self {
        let line = |from: f64, to: f64, at: usize| {
            from + (to - from) * at as f64 / (steps.max(2) - 1) as f64
        };
        let cosine = |at: usize| {
            let share = at as f64 / steps as f64;
            ((share + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)
        };
        let betas: Vec<f64> = (0..steps)
            .map(|at| match beta {
                Beta::Linear => line(first, last, at),
                Beta::ScaledLinear => line(first.sqrt(), last.sqrt(), at).powi(2),
                Beta::SquaredCosine => (1.0 - cosine(at + 1) / cosine(at)).min(0.999),
            })
            .collect();
        let alphas = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        Self { betas, alphas }
    }

    /// Training steps.
    pub fn len(&self) -> usize {
        self.alphas.len()
    }

    /// Whether there is no step.
    pub fn is_empty(&self) -> bool {
        self.alphas.is_empty()
    }

    /// β by time.
    pub fn betas(&self) -> &[f64] {
        &self.betas
    }

    /// ᾱ by time.
    pub fn alphas(&self) -> &[f64] {
        &self.alphas
    }

    /// The times of `steps` inference steps, from noisy to clean, as diffusers' `trailing` spacing:
    /// the first is the last training step.
    pub fn trailing(&self, steps: usize) -> Vec<usize> {
        let ratio = self.len() as f64 / steps as f64;
        (0..steps)
            .map(|at| ((self.len() as f64 - at as f64 * ratio).round() as usize).saturating_sub(1))
            .collect()
    }

    /// The times of `steps` inference steps as diffusers' `leading` spacing with an offset of 1.
    pub fn leading(&self, steps: usize) -> Vec<usize> {
        let ratio = self.len() / steps.max(1);
        (0..steps).rev().map(|at| (at * ratio + 1).min(self.len() - 1)).collect()
    }

    /// `z_t = √ᾱ_t z_0 + √(1−ᾱ_t) ε`, one time per row of `z0` `[batch, …]`.
    pub fn add_noise(&self, z0: &Tensor, noise: &Tensor, times: &[usize]) -> Result<Tensor> {
        let (signal, spread) = self.factors(z0, times)?;
        Ok((z0.broadcast_mul(&signal)? + noise.broadcast_mul(&spread)?)?)
    }

    /// What the denoiser should answer for these rows.
    pub fn target(
        &self,
        prediction: Prediction,
        z0: &Tensor,
        noise: &Tensor,
        times: &[usize],
    ) -> Result<Tensor> {
        Ok(match prediction {
            Prediction::Epsilon => noise.clone(),
            Prediction::Sample => z0.clone(),
            Prediction::Velocity => {
                let (signal, spread) = self.factors(z0, times)?;
                (noise.broadcast_mul(&signal)? - z0.broadcast_mul(&spread)?)?
            }
        })
    }

    /// ẑ₀ and ε̂ from an answer of any kind, at one time for all rows.
    pub fn clean_and_noise(
        &self,
        prediction: Prediction,
        z: &Tensor,
        answer: &Tensor,
        time: usize,
    ) -> Result<(Tensor, Tensor)> {
        let alpha = self.alphas[time];
        let (signal, spread) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        Ok(match prediction {
            Prediction::Epsilon => (((z - (answer * spread)?)? / signal)?, answer.clone()),
            Prediction::Sample => (answer.clone(), ((z - (answer * signal)?)? / spread)?),
            Prediction::Velocity => {
                (((z * signal)? - (answer * spread)?)?, ((answer * signal)? + (z * spread)?)?)
            }
        })
    }

    /// The DDIM step (η = 0) from `time` to `next` (`None` = to the clean end).
    pub fn ddim(&self, clean: &Tensor, noise: &Tensor, next: Option<usize>) -> Result<Tensor> {
        let Some(next) = next else { return Ok(clean.clone()) };
        let alpha = self.alphas[next];
        Ok(((clean * alpha.sqrt())? + (noise * (1.0 - alpha).sqrt())?)?)
    }

    /// √ᾱ and √(1−ᾱ) per row, shaped to multiply `like`.
    fn factors(&self, like: &Tensor, times: &[usize]) -> Result<(Tensor, Tensor)> {
        let rows = like.dim(0)?;
        if times.len() != rows || times.iter().any(|&time| time >= self.len()) {
            return Err(Error::Bug(format!("{} times for {rows} rows", times.len())));
        }
        let mut shape = vec![1; like.rank()];
        shape[0] = rows;
        let column = |value: &dyn Fn(f64) -> f64| {
            let values: Vec<f32> =
                times.iter().map(|&time| value(self.alphas[time]) as f32).collect();
            Ok::<_, Error>(Tensor::from_vec(values, shape.clone(), &Device::Cpu)?)
        };
        Ok((column(&|alpha| alpha.sqrt())?, column(&|alpha| (1.0 - alpha).sqrt())?))
    }
}
