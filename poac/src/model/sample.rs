//! Deterministic DDIM sampling with classifier-free guidance.

use candle_core::Tensor;
use common::Result;
use common::rng::Seed;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Denoiser, Prediction, Schedule, TextBatch};

/// Pictures that are sampled together.
const BATCH: usize = 16;

/// How pictures are sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SampleOptions {
    /// DDIM steps.
    pub steps: usize,
    /// Guidance scale; 1 = none.
    pub guidance: f64,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self { steps: 12, guidance: 1.5 }
    }
}

/// The start noise of a picture depends on its seed alone, not on the pictures beside it.
///
/// # Errors
/// None but bugs.
pub fn start_noise(seeds: &[u64], tokens: usize, components: usize) -> Result<Tensor> {
    let rows = seeds
        .iter()
        .map(|&seed| Seed::new(seed).stream("picture").normal_tensor((tokens, components), 1.0))
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::stack(&rows, 0)?)
}

/// Codes `[n, tokens, components]` for the prompts of `text`, one seed each. `empty` is the batch of
/// as many empty prompts, for guidance.
///
/// # Errors
/// None but bugs.
pub fn sample(
    denoiser: &Denoiser,
    schedule: &Schedule,
    prediction: Prediction,
    text: &TextBatch,
    empty: &TextBatch,
    start: &Tensor,
    options: &SampleOptions,
) -> Result<Tensor> {
    let rows = start.dim(0)?;
    let chunk = |first: usize| {
        let count = BATCH.min(rows - first);
        let (text, empty) = (text.narrow(first, count)?, empty.narrow(first, count)?);
        let mut z = start.narrow(0, first, count)?.contiguous()?;
        let times = schedule.trailing(options.steps);
        for (at, &time) in times.iter().enumerate() {
            let all = vec![time; count];
            let mut answer = denoiser.forward(&z, &all, &text)?.detach();
            if options.guidance != 1.0 {
                let plain = denoiser.forward(&z, &all, &empty)?.detach();
                answer = (&plain + ((answer - &plain)? * options.guidance)?)?;
            }
            let (clean, noise) = schedule.clean_and_noise(prediction, &z, &answer, time)?;
            z = schedule.ddim(&clean, &noise, times.get(at + 1).copied())?;
        }
        Ok(z)
    };
    let firsts: Vec<usize> = (0..rows).step_by(BATCH).collect();
    let parts = firsts.into_par_iter().map(chunk).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&parts, 0)?)
}
