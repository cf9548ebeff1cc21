//! Training from scratch, and the states that interrupted runs go on from.

pub mod unlearn;
pub mod warm;

use std::collections::BTreeMap;

use candle_core::Tensor;
use common::checkpoint::Checkpoints;
use common::lm::{Lm, LmConfig};
use common::nn::Parameters;
use common::optim::{AdamW, AdamWOptions, Schedule, ScheduleShape, Workers};
use common::rng::Seed;
use common::run::{check_interrupt, progress};
use common::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{DataConfig, FitConfig, ModelConfig};
use crate::model::Recommender;
use crate::model::recommender::Batch;
use crate::prompt::{Prompt, Vocabulary};

/// Parts of a batch whose gradients are added in order, whatever the number of threads.
const SLICES: usize = 4;
/// Gradient norm above which a step is scaled down.
const CLIP: f64 = 1.0;
/// Steps of the learning rate's rise.
const WARMUP: u64 = 50;
/// Raised whenever a change here changes what a training yields.
pub const VERSION: u32 = 4;

/// Mean loss of every epoch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Mean training loss of each finished epoch.
    pub loss: Vec<f64>,
    /// Seconds of the whole training.
    pub seconds: f64,
}

/// The decoder that the config describes, for this vocabulary.
pub fn lm_config(model: &ModelConfig, data: &DataConfig, vocabulary: &Vocabulary) -> LmConfig {
    let positions = vocabulary.window_tokens(data.history + 1);
    LmConfig::gpt2(vocabulary.len(), model.width, model.layers, model.heads, positions)
}

/// Optimises the loss over the windows from the weights of `lm`, all of them or, with
/// `options.lora`, low-rank adapters that are merged at the end; the same seed gives the same weights.
/// With `checkpoints` a state is kept per epoch, and a kept one is gone on from.
///
/// # Errors
/// [`Error::Data`] without windows or when the loss is not finite; [`Error::Interrupted`].
pub fn fit(
    lm: Lm,
    windows: &[Prompt],
    options: &FitConfig,
    seed: Seed,
    workers: &Workers,
    checkpoints: Option<&Checkpoints>,
) -> Result<(Lm, History)> {
    if windows.is_empty() {
        return Err(Error::data("no training window", "at least one user with training events"));
    }
    let start = std::time::Instant::now();
    let lm = match options.lora.is_none() && options.warm != 0.0 {
        true => warm::start(&lm, windows, options.warm)?,
        false => lm,
    };
    let mut model = Recommender { lm };
    let parameters = match &options.lora {
        Some(lora) => model.lm.attach_lora(&lora.options(), seed)?,
        None => model.lm.parameters().clone(),
    };
    let adamw = AdamWOptions { weight_decay: options.weight_decay, ..AdamWOptions::default() };
    let mut optimiser = AdamW::new(&parameters, adamw);
    let mut history: History =
        resume(checkpoints, &parameters, &mut optimiser)?.unwrap_or_default();
    let per_epoch = windows.len().div_ceil(options.batch);
    let total = (per_epoch * options.epochs) as u64;
    // the last step has 5 % of the peak
    let schedule = Schedule {
        peak: options.lr,
        warmup: WARMUP.min(total / 4),
        shape: ScheduleShape::Linear { total: total + total / 19 },
    };
    let bar = progress(total, "fit");
    bar.add(optimiser.step_count());
    for epoch in history.loss.len()..options.epochs {
        let order = seed.stream(&format!("shuffle/epoch-{epoch}")).permutation(windows.len());
        let mut hidden = seed.stream(&format!("unknown/epoch-{epoch}"));
        let mut sum = 0.0;
        for chunk in order.chunks(options.batch) {
            check_interrupt()?;
            let mut window = |&at: &usize| match hidden.chance(options.unknown) {
                true => windows[at].of_unknown(),
                false => windows[at].clone(),
            };
            let batch: Vec<Prompt> = chunk.iter().map(&mut window).collect();
            let batch: Vec<&Prompt> = batch.iter().collect();
            let (loss, mut gradients) =
                workers_gradients(workers, &parameters, &batch, |part| model.loss(part))?;
            if !loss.is_finite() {
                return Err(Error::data(
                    format!("a loss of {loss} in epoch {}", epoch + 1),
                    "a finite loss; lower fit.lr",
                ));
            }
            gradients.clip_global_norm(CLIP)?;
            optimiser.step(&gradients, schedule.at(optimiser.step_count() + 1))?;
            sum += loss;
            bar.add(1);
        }
        history.loss.push(sum / per_epoch as f64);
        history.seconds += start.elapsed().as_secs_f64();
        keep(checkpoints, &parameters, &optimiser, &history)?;
    }
    if options.lora.is_some() {
        model.lm.merge_lora()?;
    }
    history.seconds = start.elapsed().as_secs_f64();
    Ok((model.lm, history))
}

/// Loss and gradients of a batch, in [`SLICES`] parts of prompts of like length, weighted by their
/// answers. A batch without answers has no gradient and is an error.
fn workers_gradients(
    workers: &Workers,
    parameters: &Parameters,
    batch: &[&Prompt],
    loss: impl Fn(&Batch) -> Result<Tensor> + Sync,
) -> Result<(f64, common::optim::Gradients)> {
    let size = batch.len().div_ceil(SLICES.min(batch.len().max(1)));
    let mut batch = batch.to_vec();
    batch.sort_by_key(|prompt| prompt.ids.len());
    let parts: Vec<Batch> = batch
        .chunks(size.max(1))
        .map(|part| Batch::new(part.iter().copied()))
        .collect::<Result<_>>()?;
    let parts: Vec<Batch> = parts.into_iter().filter(|part| part.answers > 0).collect();
    let all: usize = parts.iter().map(|part| part.answers).sum();
    workers.gradients(parameters, parts.len(), |at| {
        Ok((loss(&parts[at])? * (parts[at].answers as f64 / all as f64))?)
    })
}

/// Parameters and optimiser under one roof.
fn keep(
    checkpoints: Option<&Checkpoints>,
    parameters: &Parameters,
    optimiser: &AdamW,
    state: &impl Serialize,
) -> Result<()> {
    let Some(checkpoints) = checkpoints else { return Ok(()) };
    let mut tensors: BTreeMap<String, Tensor> = optimiser.state()?;
    tensors.extend(parameters.tensors());
    checkpoints.save(optimiser.step_count(), &tensors, state, None).map(drop)
}

/// Takes up the newest kept state, if there is one.
fn resume<S: DeserializeOwned>(
    checkpoints: Option<&Checkpoints>,
    parameters: &Parameters,
    optimiser: &mut AdamW,
) -> Result<Option<S>> {
    let Some(checkpoints) = checkpoints else { return Ok(None) };
    let Some(kept) = checkpoints.latest::<S>()? else { return Ok(None) };
    for skipped in &kept.skipped {
        tracing::warn!("passed over a damaged checkpoint: {skipped}");
    }
    parameters.load(&kept.tensors)?;
    optimiser.load_state(kept.step, &kept.tensors)?;
    Ok(Some(kept.state))
}
