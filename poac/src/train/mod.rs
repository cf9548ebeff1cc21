//! Training: one visible loop, and a loss for each model.

pub mod denoiser;
pub mod plm;
pub mod ppo;
pub mod quality;
pub mod refl;
pub mod scorer;
pub mod stable;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use common::Result;
use common::checkpoint::Checkpoints;
use common::nn::Parameters;
use common::optim::{AdamW, AdamWOptions, Ema, Gradients, Schedule, ScheduleShape, Workers};
use common::run;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Slices of a batch, whose gradients are added in order: the result does not depend on the number
/// of threads.
pub const SLICES: usize = 2;

/// Length and pace of a training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pace {
    /// Optimiser steps.
    pub steps: u64,
    /// Examples a step; a multiple of 2.
    pub batch: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Share of the steps in which the learning rate rises; it falls along a cosine after.
    pub warmup: f64,
    /// Weight decay of AdamW.
    pub weight_decay: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { steps: 1_000, batch: 64, lr: 1e-3, warmup: 0.1, weight_decay: 0.01 }
    }
}

/// What a training did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Loss of every step.
    pub losses: Vec<f64>,
}

/// The loop: `steps` times the gradient of `loss(step, slice)` summed over [`SLICES`] slices,
/// `adjust`ed, clipped at norm 1, one AdamW step. Everything random must be drawn from a stream named
/// after the step, so a run that is killed continues from its last checkpoint in `work` and ends with
/// the same bytes. With `ema` the parameters end as their moving average.
///
/// # Errors
/// Those of `loss` and the checkpoints; [`common::Error::Interrupted`] on a signal.
pub fn train(
    name: &str,
    parameters: &Parameters,
    pace: &Pace,
    ema: Option<f64>,
    work: &Path,
    adjust: impl Fn(Gradients) -> Result<Gradients>,
    loss: impl Fn(u64, usize) -> Result<Tensor> + Sync,
) -> Result<History> {
    let options = AdamWOptions {
        weight_decay: pace.weight_decay,
        decay_vectors: false,
        ..AdamWOptions::default()
    };
    let warmup = (pace.warmup * pace.steps as f64) as u64;
    let schedule =
        Schedule { peak: pace.lr, warmup, shape: ScheduleShape::Cosine { total: pace.steps } };
    let workers = Workers::new(common::runtime::init(None).threads.min(SLICES))?;
    let checkpoints = Checkpoints::open(&work.join(name))?;
    let mut optimiser = AdamW::new(parameters, options);
    let mut average = ema.map(|decay| Ema::new(parameters, decay)).transpose()?;
    let mut history = History::default();
    let mut first = 0;
    if let Some(kept) = checkpoints.latest::<History>()? {
        parameters.load(&kept.tensors)?;
        optimiser.load_state(kept.step, &kept.tensors)?;
        if let Some(average) = &mut average {
            let part = |(name, tensor): (&String, &Tensor)| {
                name.strip_prefix("ema.").map(|name| (name.to_owned(), tensor.clone()))
            };
            average.load(kept.tensors.iter().filter_map(part).collect());
        }
        (first, history) = (kept.step, kept.state);
    }
    let bar = run::progress(pace.steps, name);
    bar.add(first);
    let save_every = (pace.steps / 8).max(50);
    for step in first..pace.steps {
        run::check_interrupt()?;
        let (value, gradients) =
            workers.gradients(parameters, SLICES, |slice| loss(step, slice))?;
        let mut gradients = adjust(gradients)?;
        gradients.clip_global_norm(1.0)?;
        optimiser.step(&gradients, schedule.at(step + 1))?;
        if let Some(average) = &mut average {
            average.update(parameters)?;
        }
        history.losses.push(value);
        bar.add(1);
        if (step + 1) % save_every == 0 && step + 1 < pace.steps {
            let mut tensors: BTreeMap<String, Tensor> = parameters.tensors();
            tensors.extend(optimiser.state()?);
            if let Some(average) = &average {
                let named = average.tensors().iter();
                tensors.extend(named.map(|(name, tensor)| (format!("ema.{name}"), tensor.clone())));
            }
            checkpoints.save(step + 1, &tensors, &history, None)?;
        }
    }
    if let Some(average) = average {
        parameters.load(average.tensors())?;
    }
    Ok(history)
}
