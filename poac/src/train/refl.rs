//! Stage II: reward feedback learning of the denoiser (Algorithm 2).

use std::path::Path;

use candle_core::Tensor;
use common::Result;
use common::nn::Parameters;
use common::rng::{Seed, Stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::denoiser::{Captioned, denoising_loss};
use super::{History, Pace, SLICES, train};
use crate::model::reward::{Standard, anchor_loss, combine, reward_loss};
use crate::model::{Codec, Denoiser, Prediction, QualityHead, Schedule, Scorer, TextBatch};

/// What ReFL maximises in one stage, and for how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Stage {
    /// Weight of scorer A's cosine between picture and optimised prompt.
    pub clip: f64,
    /// Weight of the quality head.
    pub quality: f64,
    /// Optimiser steps.
    pub steps: u64,
}

impl Default for Stage {
    fn default() -> Self {
        Self { clip: 1.0, quality: 0.0, steps: 40 }
    }
}

/// Which text a picture is compared with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Relevance {
    /// The prompt as the user wrote it, x.
    Original,
    /// The optimised prompt, y.
    #[default]
    Optimised,
    /// The mean of both cosines.
    Both,
}

/// Which layers of the denoiser get adapters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Adapted {
    /// The attention layers, as in the public ReFL code.
    #[default]
    Attention,
    /// All linear layers.
    All,
}

/// Prompts of a step: what the denoiser is told, and what the user had written.
#[derive(Debug, Clone)]
pub struct Asked {
    /// y, or x itself where nothing was rewritten.
    pub told: TextBatch,
    /// x.
    pub original: TextBatch,
}

/// Reward feedback learning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReflOptions {
    /// The stages in order; faithfulness, then quality with faithfulness (§3.5).
    pub stages: Vec<Stage>,
    /// Inference steps N.
    pub inference_steps: usize,
    /// The gradient enters at a step drawn from `first_step..inference_steps`.
    pub first_step: usize,
    /// Steps that the gradient passes, ending at that step: 1 is ReFL, more is
    /// [DRaFT-K](https://arxiv.org/abs/2309.17400).
    pub backprop_steps: usize,
    /// What a picture is compared with.
    pub relevance: Relevance,
    /// Share of the prompts that stay as the user wrote them.
    pub raw_share: f64,
    /// Layers with adapters.
    pub adapted: Adapted,
    /// Prompts a step.
    pub batch: usize,
    /// Learning rate.
    pub lr: f64,
    /// λ of Eq. 6.
    pub lambda: f64,
    /// b of Eq. 6.
    pub target: f64,
    /// Rank of the adapters.
    pub rank: usize,
    /// Add L_pre (Eq. 7); without it the public ReFL code makes models worse.
    pub pretraining_loss: bool,
    /// Weight of L_anchor (Eq. 11, ours); 0 leaves it out. In the emoji world only.
    pub anchor: f64,
}

impl Default for ReflOptions {
    fn default() -> Self {
        Self {
            stages: vec![Stage::default(), Stage { quality: 1.0, steps: 30, ..Stage::default() }],
            inference_steps: 12,
            first_step: 7,
            backprop_steps: 1,
            relevance: Relevance::default(),
            raw_share: 0.0,
            adapted: Adapted::default(),
            batch: 16,
            lr: 1e-3,
            lambda: 0.1,
            target: 2.0,
            rank: 4,
            pretraining_loss: true,
            anchor: 0.0,
        }
    }
}

/// The step of the chain at which Algorithm 2 looks.
#[derive(Debug)]
pub struct Looked {
    /// z_t.
    pub noisy: Tensor,
    /// t.
    pub time: usize,
    /// What the denoiser says.
    pub answer: Tensor,
    /// ẑ₀ of Eq. 4.
    pub clean: Tensor,
}

/// The frozen path from noise to reward: all that a step needs besides the denoiser.
#[derive(Debug)]
pub struct RewardModel<'a> {
    /// The denoiser before tuning.
    pub untuned: &'a Denoiser,
    /// ᾱ.
    pub schedule: &'a Schedule,
    /// What the denoiser predicts.
    pub prediction: Prediction,
    /// Code of pictures.
    pub codec: &'a Codec,
    /// Scorer A, frozen.
    pub scorer: &'a Scorer,
    /// Quality head on scorer A, frozen.
    pub quality: &'a QualityHead,
    /// μ and σ of scorer A's cosine over pictures of the base model.
    pub clip_standard: Standard,
    /// μ and σ of the quality head over the same pictures.
    pub quality_standard: Standard,
}

impl RewardModel<'_> {
    /// Steps 1 to 4 of Algorithm 2: noise through `m` steps and one more; ẑ₀ of Eq. 4. The gradient
    /// passes the last `through` of these steps.
    ///
    /// # Errors
    /// None but bugs.
    pub fn predict(
        &self,
        denoiser: &Denoiser,
        text: &TextBatch,
        start: Tensor,
        steps: usize,
        [m, through]: [usize; 2],
    ) -> Result<Looked> {
        let times = self.schedule.trailing(steps);
        let rows = start.dim(0)?;
        let mut z = start;
        for (at, &time) in times.iter().take(m).enumerate() {
            let answer = denoiser.forward(&z, &vec![time; rows], text)?;
            let (clean, noise) =
                self.schedule.clean_and_noise(self.prediction, &z, &answer, time)?;
            z = self.schedule.ddim(&clean, &noise, times.get(at + 1).copied())?;
            if at + through <= m {
                z = z.detach();
            }
        }
        let time = times[m];
        let answer = denoiser.forward(&z, &vec![time; rows], text)?;
        let (clean, _) = self.schedule.clean_and_noise(self.prediction, &z, &answer, time)?;
        Ok(Looked { noisy: z, time, answer, clean })
    }

    /// Scorer A's cosine of pictures and the texts they should show, `[n]`.
    ///
    /// # Errors
    /// None but bugs.
    pub fn relevance(
        scorer: &Scorer,
        pictures: &Tensor,
        asked: &Asked,
        relevance: Relevance,
    ) -> Result<Tensor> {
        let images = scorer.embed_images(pictures)?;
        let cosine = |text: &TextBatch| {
            let texts = scorer.embed_texts(&text.mean()?)?;
            Ok::<_, common::Error>((&images * texts)?.sum(1)?)
        };
        match relevance {
            Relevance::Original => cosine(&asked.original),
            Relevance::Optimised => cosine(&asked.told),
            Relevance::Both => Ok(((cosine(&asked.original)? + cosine(&asked.told)?)? * 0.5)?),
        }
    }

    /// Eq. 10 for decoded codes: `[n]`; `None` when all weights are 0.
    ///
    /// # Errors
    /// None but bugs.
    pub fn reward(
        &self,
        codes: &Tensor,
        asked: &Asked,
        relevance: Relevance,
        stage: &Stage,
    ) -> Result<Option<Tensor>> {
        let pictures = self.codec.decode(codes)?.clamp(-1f32, 1f32)?;
        let mut scores = Vec::new();
        if stage.clip != 0.0 {
            let cosine = Self::relevance(self.scorer, &pictures, asked, relevance)?;
            scores.push((stage.clip, self.clip_standard, cosine));
        }
        if stage.quality != 0.0 {
            let quality = self.quality.forward(&self.scorer.image_features(&pictures)?)?;
            scores.push((stage.quality, self.quality_standard, quality));
        }
        combine(&scores)
    }
}

/// Eq. 8 on a batch of prompts: reward loss and, if asked for, pre-training loss and anchor (Eq. 11).
/// A stage without reward (the constant-reward control) has the pre-training loss alone.
///
/// # Errors
/// None but bugs.
pub fn refl_loss(
    denoiser: &Denoiser,
    rewards: &RewardModel<'_>,
    captioned: &Captioned<'_>,
    asked: &Asked,
    options: &ReflOptions,
    stage: &Stage,
    stream: &mut Stream,
) -> Result<Tensor> {
    let rows = asked.told.features.dim(0)?;
    let codes = captioned.codes(crate::data::Style::Colour);
    let (tokens, components) = (codes.dim(1)?, codes.dim(2)?);
    let first = options.first_step.min(options.inference_steps - 1);
    let m = first + stream.below(options.inference_steps - first);
    let start = stream.normal_tensor((rows, tokens, components), 1.0)?;
    let mut total: Option<Tensor> = None;
    if stage.clip != 0.0 || stage.quality != 0.0 {
        let steps = [m, options.backprop_steps];
        let looked =
            rewards.predict(denoiser, &asked.told, start, options.inference_steps, steps)?;
        if let Some(reward) = rewards.reward(&looked.clean, asked, options.relevance, stage)? {
            let mut loss = reward_loss(&reward, options.lambda, options.target)?;
            if options.anchor != 0.0 {
                let times = vec![looked.time; rows];
                let before = rewards.untuned.forward(&looked.noisy, &times, &asked.told)?;
                loss = (loss + (anchor_loss(&looked.answer, &before)? * options.anchor)?)?;
            }
            total = Some(loss);
        }
    }
    if options.pretraining_loss || total.is_none() {
        let batch = captioned.draw(rows, stream)?;
        let pre = denoising_loss(denoiser, rewards.schedule, rewards.prediction, &batch, stream)?;
        total = Some(match total {
            Some(reward) => (reward + pre)?,
            None => pre,
        });
    }
    total.ok_or_else(|| common::Error::usage("a ReFL stage without any loss"))
}

/// Runs the stages on the adapters of `denoiser`; `prompts(n, stream)` draws prompts of train
/// concepts. One history a stage.
///
/// # Errors
/// Those of [`train`].
#[allow(clippy::too_many_arguments)] // each is a different thing
pub fn fit(
    denoiser: &Denoiser,
    adapters: &Parameters,
    rewards: &RewardModel<'_>,
    captioned: &Captioned<'_>,
    options: &ReflOptions,
    prompts: impl Fn(usize, &mut Stream) -> Result<Asked> + Sync,
    seed: Seed,
    work: &Path,
) -> Result<Vec<History>> {
    let rows = options.batch / SLICES;
    let mut histories = Vec::new();
    for (at, stage) in options.stages.iter().enumerate() {
        let pace = Pace {
            steps: stage.steps,
            batch: options.batch,
            lr: options.lr,
            weight_decay: 0.0,
            ..Pace::default()
        };
        let name = format!("refl-{at}");
        let loss = |step: u64, slice: usize| {
            let mut stream = seed.stream(&format!("{name}/{step}/{slice}"));
            let asked = prompts(rows, &mut stream)?;
            let value =
                refl_loss(denoiser, rewards, captioned, &asked, options, stage, &mut stream)?;
            Ok((value / SLICES as f64)?)
        };
        histories.push(train(&name, adapters, &pace, None, work, Ok, loss)?);
    }
    Ok(histories)
}
