//! Samplers: from noise to a latent in a few steps, equal to diffusers' schedulers.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::config::{bad, object, refuse_others, typed};
use super::schedule::{Beta, Prediction, Schedule};
use crate::{Error, Result};

/// How a sampler goes from one noise level to the next.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    /// Ancestral sampling with the small variance ([Ho et al. 2020](https://arxiv.org/abs/2006.11239)).
    Ddpm,
    /// Deterministic ([Song et al. 2021](https://arxiv.org/abs/2010.02502), η = 0).
    Ddim,
    /// Euler's method on the probability flow ([Karras et al. 2022](https://arxiv.org/abs/2206.00364)).
    Euler,
    /// Second-order multistep DPM-Solver++ ([Lu et al. 2022](https://arxiv.org/abs/2211.01095)).
    #[default]
    DpmPp2m,
}

/// Which of the training steps are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Multiples of a whole ratio, plus `steps_offset` (Stable Diffusion).
    #[default]
    Leading,
    /// Evenly from the first to the last training step.
    Linspace,
    /// From the last training step downwards.
    Trailing,
}

/// `scheduler_config.json` in diffusers' words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// Training steps.
    pub num_train_timesteps: usize,
    /// First β.
    pub beta_start: f64,
    /// Last β.
    pub beta_end: f64,
    /// `linear`, `scaled_linear` or `squaredcos_cap_v2`.
    pub beta_schedule: String,
    /// `epsilon`, `v_prediction` or `sample`.
    pub prediction_type: String,
    /// Which training steps are used.
    pub timestep_spacing: Spacing,
    /// Added to the steps of [`Spacing::Leading`].
    pub steps_offset: usize,
    /// Cut ẑ₀ to -1..1 (DDPM, DDIM).
    pub clip_sample: bool,
    /// The step before the first is noiseless (DDIM); otherwise it is training step 0.
    pub set_alpha_to_one: bool,
    /// Noise levels of [Karras et al. 2022](https://arxiv.org/abs/2206.00364) (DPM-Solver++, Euler).
    pub use_karras_sigmas: bool,
}

impl Default for SchedulerConfig {
    /// Stable Diffusion's.
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: "scaled_linear".into(),
            prediction_type: "epsilon".into(),
            timestep_spacing: Spacing::Leading,
            steps_offset: 1,
            clip_sample: false,
            set_alpha_to_one: false,
            use_karras_sigmas: false,
        }
    }
}

impl SchedulerConfig {
    /// Reads a `scheduler_config.json`; the class it names is left to the caller.
    ///
    /// # Errors
    /// [`Error::Asset`] with field and value.
    pub fn from_json(text: &str) -> Result<Self> {
        let file = "scheduler/scheduler_config.json";
        let fields = object(file, text)?;
        let plain = [
            ("trained_betas", serde_json::Value::Null),
            ("rescale_betas_zero_snr", false.into()),
            ("thresholding", false.into()),
        ];
        refuse_others(file, &fields, &plain)?;
        let config: Self = typed(file, fields)?;
        config.schedule()?;
        config.prediction()?;
        Ok(config)
    }

    /// ᾱ by training step.
    ///
    /// # Errors
    /// [`Error::Asset`] on an unknown schedule.
    pub fn schedule(&self) -> Result<Schedule> {
        let file = "scheduler/scheduler_config.json";
        let beta = match self.beta_schedule.as_str() {
            "linear" => Beta::Linear,
            "scaled_linear" => Beta::ScaledLinear,
            "squaredcos_cap_v2" => Beta::SquaredCosine,
            other => {
                let expected = "expected linear, scaled_linear or squaredcos_cap_v2";
                return Err(bad(file, format!("beta_schedule is {other}, {expected}")));
            }
        };
        let steps = self.num_train_timesteps;
        let ends = self.beta_start > 0.0 && self.beta_end < 1.0 && self.beta_start <= self.beta_end;
        if !(2..=1 << 20).contains(&steps) || !ends {
            let (first, last) = (self.beta_start, self.beta_end);
            return Err(bad(file, format!("{steps} training steps with β from {first} to {last}")));
        }
        Ok(Schedule::between(beta, steps, self.beta_start, self.beta_end))
    }

    /// What the model predicts.
    ///
    /// # Errors
    /// [`Error::Asset`] on an unknown kind.
    pub fn prediction(&self) -> Result<Prediction> {
        match self.prediction_type.as_str() {
            "epsilon" => Ok(Prediction::Epsilon),
            "v_prediction" => Ok(Prediction::Velocity),
            "sample" => Ok(Prediction::Sample),
            other => Err(bad(
                "scheduler/scheduler_config.json",
                format!("prediction_type is {other}, expected epsilon, v_prediction or sample"),
            )),
        }
    }
}

/// The steps of one sampling run.
#[derive(Debug, Clone)]
pub struct Sampler {
    kind: SamplerKind,
    prediction: Prediction,
    clip: bool,
    schedule: Schedule,
    times: Vec<f64>,
    /// Noise over signal by step, then 0 (Euler, DPM-Solver++).
    sigmas: Vec<f64>,
    /// Training steps between two steps (DDIM).
    stride: usize,
    /// ᾱ before the first training step (DDIM).
    final_alpha: f64,
    spacing: Spacing,
    /// ẑ₀ of the step before (DPM-Solver++).
    before: Option<Tensor>,
}

impl Sampler {
    /// `steps` steps of a scheduler.
    ///
    /// # Errors
    /// [`Error::Usage`] when `steps` is 0 or more than the training steps.
    pub fn new(kind: SamplerKind, config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let schedule = config.schedule()?;
        let total = schedule.len();
        if steps == 0 || steps > total {
            return Err(Error::usage(format!("{steps} sampling steps; use 1 to {total}")));
        }
        let spacing = config.timestep_spacing;
        let mut times = times(kind, spacing, total, steps, config.steps_offset);
        let all: Vec<f64> = schedule.alphas().iter().map(|a| ((1.0 - a) / a).sqrt()).collect();
        let mut sigmas: Vec<f64> = Vec::new();
        if matches!(kind, SamplerKind::Euler | SamplerKind::DpmPp2m) {
            if config.use_karras_sigmas {
                sigmas = karras(all[0], all[total - 1], steps);
                let whole = kind == SamplerKind::DpmPp2m;
                let cosine = config.beta_schedule == "squaredcos_cap_v2";
                times = sigmas.iter().map(|&sigma| time_of(sigma, &all)).collect();
                if whole {
                    let cut = |t: f64| if cosine { t.trunc() } else { t.round_ties_even() };
                    times = times.into_iter().map(cut).collect();
                }
            } else {
                sigmas = times.iter().map(|&time| between(&all, time)).collect();
            }
            sigmas.push(0.0);
        }
        let final_alpha = if config.set_alpha_to_one { 1.0 } else { schedule.alphas()[0] };
        Ok(Self {
            kind,
            prediction: config.prediction()?,
            clip: config.clip_sample,
            stride: total / steps,
            times,
            sigmas,
            final_alpha,
            spacing,
            schedule,
            before: None,
        })
    }

    /// Time of each step, from noisy to clean.
    pub fn times(&self) -> &[f64] {
        &self.times
    }

    /// Noise over signal by step, then 0; empty for DDPM and DDIM.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// ᾱ by training step.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// What the start noise (variance 1) is multiplied with.
    pub fn start_scale(&self) -> f64 {
        let most = self.sigmas.iter().copied().fold(0.0, f64::max);
        match (self.kind, self.spacing) {
            (SamplerKind::Euler, Spacing::Leading) => most.hypot(1.0),
            (SamplerKind::Euler, _) => most,
            _ => 1.0,
        }
    }

    /// What the model sees of the state `x` at step `step`.
    ///
    /// # Errors
    /// None but bugs.
    pub fn model_input(&self, x: &Tensor, step: usize) -> Result<Tensor> {
        match self.kind {
            SamplerKind::Euler => Ok((x / self.sigmas[step].hypot(1.0))?),
            _ => Ok(x.clone()),
        }
    }

    /// The next state from the model's answer at step `step`. Steps come in order; step 0 starts a new
    /// run. `noise` (variance 1, `x`'s shape) is wanted by DDPM at all steps but the last.
    ///
    /// # Errors
    /// [`Error::Usage`] when DDPM lacks its noise.
    pub fn step(
        &mut self,
        step: usize,
        answer: &Tensor,
        x: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        match self.kind {
            SamplerKind::Ddpm => self.ddpm(step, answer, x, noise),
            SamplerKind::Ddim => self.ddim(step, answer, x),
            SamplerKind::Euler => self.euler(step, answer, x),
            SamplerKind::DpmPp2m => self.dpm(step, answer, x),
        }
    }

    /// ẑ₀ and ε̂ at a whole time.
    fn clean(&self, step: usize, answer: &Tensor, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let time = self.times[step] as usize;
        let (clean, noise) = self.schedule.clean_and_noise(self.prediction, x, answer, time)?;
        Ok((if self.clip { clean.clamp(-1f32, 1f32)? } else { clean }, noise))
    }

    fn ddim(&self, step: usize, answer: &Tensor, x: &Tensor) -> Result<Tensor> {
        let (clean, noise) = self.clean(step, answer, x)?;
        let next = (self.times[step] as usize).checked_sub(self.stride);
        let alpha = next.map_or(self.final_alpha, |next| self.schedule.alphas()[next]);
        Ok(((clean * alpha.sqrt())? + (noise * (1.0 - alpha).sqrt())?)?)
    }

    fn ddpm(
        &self,
        step: usize,
        answer: &Tensor,
        x: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (clean, _) = self.clean(step, answer, x)?;
        let alphas = self.schedule.alphas();
        let time = self.times[step] as usize;
        let alpha = alphas[time];
        let before = self.times.get(step + 1).map_or(1.0, |&next| alphas[next as usize]);
        let beta = 1.0 - alpha / before;
        let of_clean = before.sqrt() * beta / (1.0 - alpha);
        let of_x = (1.0 - beta).sqrt() * (1.0 - before) / (1.0 - alpha);
        let mean = ((clean * of_clean)? + (x * of_x)?)?;
        if time == 0 || step + 1 == self.times.len() {
            return Ok(mean);
        }
        let noise = noise.ok_or_else(|| Error::usage("a DDPM step without noise; give it some"))?;
        let variance = ((1.0 - before) / (1.0 - alpha) * beta).max(1e-20);
        Ok((mean + (noise * variance.sqrt())?)?)
    }

    fn euler(&self, step: usize, answer: &Tensor, x: &Tensor) -> Result<Tensor> {
        let (sigma, next) = (self.sigmas[step], self.sigmas[step + 1]);
        let clean = match self.prediction {
            Prediction::Epsilon => (x - (answer * sigma)?)?,
            Prediction::Sample => answer.clone(),
            Prediction::Velocity => {
                let spread = sigma.hypot(1.0);
                ((x / (spread * spread))? - (answer * (sigma / spread))?)?
            }
        };
        let slope = ((x - clean)? / sigma)?;
        Ok((x + (slope * (next - sigma))?)?)
    }

    fn dpm(&mut self, step: usize, answer: &Tensor, x: &Tensor) -> Result<Tensor> {
        // signal, noise and half the log of their squares' ratio
        let level = |at: usize| {
            let sigma = self.sigmas[at];
            let signal = 1.0 / sigma.hypot(1.0);
            (signal, sigma * signal, -sigma.ln())
        };
        let (signal, spread, lambda) = level(step);
        let (next_signal, next_spread, next_lambda) = level(step + 1);
        let clean = match self.prediction {
            Prediction::Epsilon => ((x - (answer * spread)?)? / signal)?,
            Prediction::Sample => answer.clone(),
            Prediction::Velocity => ((x * signal)? - (answer * spread)?)?,
        };
        let h = next_lambda - lambda;
        let factor = next_signal * (1.0 - (-h).exp());
        let mut target = clean.clone();
        if step > 0
            && step + 1 < self.times.len()
            && let Some(before) = &self.before
        {
            let ratio = (lambda - level(step - 1).2) / h;
            target = (&clean + ((&clean - before)? * (0.5 / ratio))?)?;
        }
        self.before = Some(clean);
        Ok(((x * (next_spread / spread))? + (target * factor)?)?)
    }
}

fn times(
    kind: SamplerKind,
    spacing: Spacing,
    total: usize,
    steps: usize,
    offset: usize,
) -> Vec<f64> {
    // DPM-Solver++ drops the last of one step more
    let extra = usize::from(kind == SamplerKind::DpmPp2m);
    let count = steps + extra;
    let mut times: Vec<f64> = match spacing {
        Spacing::Leading => {
            let ratio = total / count;
            (0..count).rev().map(|at| (at * ratio + offset) as f64).collect()
        }
        Spacing::Linspace => {
            let width = (total - 1) as f64 / (count.max(2) - 1) as f64;
            let time = |at: usize| {
                let time = at as f64 * width;
                if kind == SamplerKind::Euler { time } else { time.round_ties_even() }
            };
            (0..count).rev().map(time).collect()
        }
        Spacing::Trailing => {
            let ratio = total as f64 / steps as f64;
            let time = |at: usize| (total as f64 - at as f64 * ratio).round_ties_even() - 1.0;
            (0..steps).map(time).collect()
        }
    };
    times.truncate(steps);
    times.iter_mut().for_each(|time| *time = time.clamp(0.0, (total - 1) as f64));
    times
}

/// Linear interpolation between the values of whole times.
fn between(values: &[f64], time: f64) -> f64 {
    let low = (time.floor() as usize).min(values.len() - 1);
    let high = (low + 1).min(values.len() - 1);
    values[low] + (values[high] - values[low]) * (time - low as f64)
}

/// Noise levels of Karras et al. 2022, Eq. 5 with ρ = 7.
fn karras(least: f64, most: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (first, last) = (most.powf(1.0 / RHO), least.powf(1.0 / RHO));
    let share = |at: usize| if steps > 1 { at as f64 / (steps - 1) as f64 } else { 0.0 };
    (0..steps).map(|at| (first + share(at) * (last - first)).powf(RHO)).collect()
}

/// The time at which the noise level is `sigma`, between two training steps by their logarithms.
fn time_of(sigma: f64, all: &[f64]) -> f64 {
    let low = all.partition_point(|&value| value <= sigma).saturating_sub(1).min(all.len() - 2);
    let (lower, upper) = (all[low].ln(), all[low + 1].ln());
    let share = ((sigma.max(1e-10).ln() - lower) / (upper - lower)).clamp(0.0, 1.0);
    low as f64 + share
}
