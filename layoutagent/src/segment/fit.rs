//! Training of the segmentation network, and its intersection over union on held-out emoji.

use candle_core::{Device, Tensor};
use common::nn::{Builder, Parameters};
use common::ops::{self, BceOptions};
use common::optim::{AdamW, AdamWOptions, Workers};
use common::rng::{Seed, Stream};
use common::{Result, emoji};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::composites::{Composite, Drawings, composite};
use super::{inputs, prompt_channels};
use crate::model::segmenter::{CHANNELS, SIDE, Segmenter};

/// The training of the segmentation network. Defaults are those of the bundled weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SegmentConfig {
    /// Updates; about 0.2 s of one core each.
    pub updates: usize,
    /// Composites per update.
    pub batch: usize,
    /// Learning rate of Adam; decays to 0 by a cosine.
    pub learning_rate: f64,
    /// Emoji in the training composites.
    pub drawings: usize,
}

impl Default for SegmentConfig {
    fn default() -> Self {
        Self { updates: 400, batch: 16, learning_rate: 3e-3, drawings: 800 }
    }
}

/// Slices of a batch whose gradients are added.
const SLICES: usize = 2;

/// `[n, 5, 64, 64]` inputs and `[n, 1, 64, 64]` masks.
fn tensors(composites: &[Composite]) -> Result<(Tensor, Tensor)> {
    let (mut values, mut masks) = (Vec::new(), Vec::new());
    for composite in composites {
        values.extend(inputs(&composite.image, &prompt_channels(composite.prompt)));
        masks.extend(composite.mask.iter().map(|&inside| f32::from(u8::from(inside))));
    }
    let count = composites.len();
    Ok((
        Tensor::from_vec(values, (count, CHANNELS, SIDE, SIDE), &Device::Cpu)?,
        Tensor::from_vec(masks, (count, 1, SIDE, SIDE), &Device::Cpu)?,
    ))
}

/// Mean binary cross-entropy over the pixels of composites.
///
/// # Errors
/// Tensor operations only.
pub fn loss(model: &Segmenter, composites: &[Composite]) -> Result<Tensor> {
    let (x, masks) = tensors(composites)?;
    Ok(ops::bce_with_logits(&model.forward(&x)?, &masks, &BceOptions::default())?)
}

fn draw(drawings: &Drawings, count: usize, stream: &mut Stream) -> Vec<Composite> {
    (0..count).map(|at| composite(drawings, at % 2 == 1, stream)).collect()
}

/// Trains a network from `seed`; `progress` hears of the loss now and then.
///
/// # Errors
/// Interrupts, drawings that do not parse, gradients that are not finite.
pub fn train(
    config: &SegmentConfig,
    pictures: &[emoji::Picture],
    seed: Seed,
    threads: usize,
    mut progress: impl FnMut(usize, f64),
) -> Result<Parameters> {
    let drawings = Drawings::new(pictures, false, config.drawings)?;
    let mut builder = Builder::seeded(seed);
    let model = Segmenter::new(&mut builder)?;
    let parameters = builder.finish();
    let mut optimiser = AdamW::new(&parameters, AdamWOptions::default());
    let workers = Workers::new(threads.min(SLICES))?;
    let mut stream = seed.stream("segment/composites");
    let share = (config.batch / SLICES).max(1);
    let mut sum = 0.0;
    for update in 1..=config.updates {
        common::run::check_interrupt()?;
        let slices: Vec<Vec<Composite>> =
            (0..SLICES).map(|_| draw(&drawings, share, &mut stream)).collect();
        let (value, mut gradients) = workers.gradients(&parameters, SLICES, |slice| {
            Ok((loss(&model, &slices[slice])? / SLICES as f64)?)
        })?;
        gradients.clip_global_norm(1.0)?;
        let done = update as f64 / config.updates as f64;
        let decay = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        let warm = (update as f64 / 50.0).min(1.0);
        optimiser.step(&gradients, config.learning_rate * decay * warm)?;
        sum += value;
        if update % 50 == 0 {
            progress(update, sum / 50.0);
            sum = 0.0;
        }
    }
    Ok(parameters)
}

/// Intersection over union of two masks; 1 when both are empty.
pub fn iou(first: &[bool], second: &[bool]) -> f64 {
    let count = |keep: fn(bool, bool) -> bool| {
        first.iter().zip(second).filter(|(a, b)| keep(**a, **b)).count() as f64
    };
    let union = count(|a, b| a || b);
    if union == 0.0 { 1.0 } else { count(|a, b| a && b) / union }
}

/// Composites of held-out emoji.
///
/// # Errors
/// A drawing that does not parse.
pub fn held_out(
    pictures: &[emoji::Picture],
    count: usize,
    by_point: bool,
    seed: Seed,
) -> Result<Vec<Composite>> {
    let drawings = Drawings::new(pictures, true, 300)?;
    let mut stream = seed.stream(if by_point { "segment/points" } else { "segment/boxes" });
    Ok((0..count).map(|_| composite(&drawings, by_point, &mut stream)).collect())
}

/// Masks of composites by the network.
///
/// # Errors
/// Tensor operations only.
pub fn predict(model: &Segmenter, composites: &[Composite]) -> Result<Vec<Vec<bool>>> {
    let mut masks = Vec::new();
    for chunk in composites.chunks(16) {
        let logits = model.forward(&tensors(chunk)?.0)?.flatten_all()?.to_vec1::<f32>()?;
        masks.extend(logits.chunks(SIDE * SIDE).map(|l| l.iter().map(|&v| v > 0.0).collect()));
    }
    Ok(masks)
}
