//! Reward feedback learning of a Stable Diffusion model (Algorithm 2 as in ImageReward's trainers):
//! adapters on the U-Net's attention layers, CLIP's cosine or ImageReward as reward.

use std::path::Path;

use candle_core::{Device, Tensor};
use common::diffusion::{AddedCondition, Sampler, SamplerKind, cosine, to_unit_range};
use common::nn::Parameters;
use common::rng::{Seed, Stream};
use common::stable_diffusion::{Clip, Condition, DrawOptions, StableDiffusion};
use common::{Error, Result, ops};

use super::refl::ReflOptions;
use super::{History, Pace, SLICES, train};
use crate::image_reward::{ImageReward, Tokens};
use crate::model::reward::{Standard, reward_loss};

/// What judges a picture by its prompt.
#[derive(Debug)]
pub enum Judge {
    /// The cosine of CLIP's features, standardised over the untuned model's pictures (Eq. 10).
    Clip(Box<Clip>),
    /// ImageReward, standardised by its own constants (Eq. 9).
    ImageReward(Box<ImageReward>),
}

/// Prompts as a [`Judge`] reads them.
#[derive(Debug)]
enum Texts {
    Clip(Tensor),
    ImageReward(Tokens),
}

impl Judge {
    fn texts(&self, prompts: &[&str]) -> Result<Texts> {
        Ok(match self {
            Self::Clip(clip) => Texts::Clip(clip.embed_texts(prompts)?.detach()),
            Self::ImageReward(model) => Texts::ImageReward(model.tokens(prompts)?),
        })
    }

    /// Raw scores `[n]` of pictures in 0..1 for as many prompts.
    fn score(&self, pictures: &Tensor, texts: &Texts) -> Result<Tensor> {
        match (self, texts) {
            (Self::Clip(clip), Texts::Clip(texts)) => {
                cosine(&clip.embed_pictures(pictures)?, texts)
            }
            (Self::ImageReward(model), Texts::ImageReward(tokens)) => {
                model.reward(pictures, tokens)
            }
            _ => Err(Error::Bug("prompts of another judge".into())),
        }
    }
}

impl Texts {
    fn select(&self, rows: &Tensor) -> Result<Self> {
        Ok(match self {
            Self::Clip(texts) => Self::Clip(texts.index_select(rows, 0)?),
            Self::ImageReward(tokens) => Self::ImageReward(Tokens {
                ids: tokens.ids.index_select(rows, 0)?,
                mask: tokens.mask.index_select(rows, 0)?,
            }),
        })
    }

    fn len(&self) -> usize {
        match self {
            Self::Clip(texts) => texts.dims()[0],
            Self::ImageReward(tokens) => tokens.ids.dims()[0],
        }
    }
}

/// A prompt to learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// What the picture should show; the judge compares it with this text.
    pub original: String,
    /// What the model is told.
    pub told: String,
    /// A real picture `[3, size, size]` in -1..1 for the pre-training loss; none = the picture that
    /// the untuned model draws.
    pub picture: Option<Vec<f32>>,
}

/// Everything of the prompts that does not change in training.
#[derive(Debug)]
pub struct Wishes {
    told: Condition,
    /// The texts that pictures are compared with.
    texts: Texts,
    /// Latents times γ for the pre-training loss, `[n, channels, side, side]`.
    clean: Tensor,
    /// μ and σ of the score: for CLIP over the untuned model's pictures, for ImageReward 0 and 1, as
    /// it is standardised already.
    pub standard: Standard,
}

impl Wishes {
    /// Encodes texts and pictures and draws one picture a prompt with the untuned model.
    ///
    /// # Errors
    /// [`Error::Data`] when there is no prompt; those of the models.
    pub fn new(
        model: &StableDiffusion,
        judge: &Judge,
        wishes: &[Wish],
        size: usize,
        steps: usize,
        seed: Seed,
    ) -> Result<Self> {
        if wishes.is_empty() {
            return Err(Error::data("no prompt", "at least one prompt to learn from"));
        }
        let texts: Vec<&str> = wishes.iter().map(|wish| wish.original.as_str()).collect();
        let told: Vec<&str> = wishes.iter().map(|wish| wish.told.as_str()).collect();
        let options =
            DrawOptions { steps, guidance: 1.0, sampler: SamplerKind::Ddim, size: Some(size) };
        let seeds: Vec<u64> =
            (0..wishes.len() as u64).map(|at| seed.value() ^ (at << 20)).collect();
        let texts = judge.texts(&texts)?;
        let (mut clean, mut scores) = (Vec::new(), Vec::new());
        let factor = model.vae.config().scaling_factor;
        for (at, wish) in wishes.iter().enumerate() {
            common::run::check_interrupt()?;
            let start = model.start(&seeds[at..=at], size)?;
            let drawn = model.latents(&start, &told[at..=at], "", &seeds[at..=at], &options)?;
            let shown = to_unit_range(&model.vae.decode(&(&drawn / factor)?)?)?;
            let own = texts.select(&Tensor::new(&[at as u32], &Device::Cpu)?)?;
            let score = judge.score(&shown, &own)?;
            scores.push(f64::from(score.to_vec1::<f32>()?[0]));
            clean.push(match &wish.picture {
                Some(pixels) => {
                    let picture = Tensor::from_slice(pixels, (1, 3, size, size), &Device::Cpu)?;
                    (model.vae.encode(&picture)?.mean.detach() * factor)?
                }
                None => drawn,
            });
        }
        let told = model.condition(&told, size)?;
        let standard = match judge {
            Judge::Clip(_) => Standard::of(&scores),
            Judge::ImageReward(_) => Standard { mean: 0.0, sd: 1.0 },
        };
        Ok(Self { told, texts, clean: Tensor::cat(&clean, 0)?, standard })
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Never: [`Wishes::new`] wants a prompt.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them as a batch.
    fn select(&self, rows: &[u32]) -> Result<(Condition, Texts, Tensor)> {
        let rows = Tensor::new(rows, &Device::Cpu)?;
        let pick = |tensor: &Tensor| tensor.index_select(&rows, 0);
        let added = match &self.told.added {
            Some(added) => Some(AddedCondition {
                text_embeds: pick(&added.text_embeds)?,
                time_ids: pick(&added.time_ids)?,
            }),
            None => None,
        };
        let told = Condition { text: pick(&self.told.text)?, added };
        Ok((told, self.texts.select(&rows)?, pick(&self.clean)?))
    }
}

/// Eq. 8 for one batch of prompts `rows`: the reward loss through `options.backprop_steps` denoising
/// steps, the decoder and the judge, and the pre-training loss (Eq. 7) beside it. `rewarded` = false gives
/// the constant-reward control.
///
/// # Errors
/// Those of the models.
pub fn refl_loss(
    model: &StableDiffusion,
    judge: &Judge,
    wishes: &Wishes,
    rows: &[u32],
    options: &ReflOptions,
    rewarded: bool,
    stream: &mut Stream,
) -> Result<Tensor> {
    let (told, texts, clean) = wishes.select(rows)?;
    let schedule = model.scheduler.schedule()?;
    let prediction = model.scheduler.prediction()?;
    let answer =
        |x: &Tensor, times: &[f64]| model.unet.forward(x, times, &told.text, told.added.as_ref());
    let mut total: Option<Tensor> = None;
    if rewarded {
        let steps = options.inference_steps;
        let mut sampler = Sampler::new(SamplerKind::Ddim, &model.scheduler, steps)?;
        let first = options.first_step.min(steps - 1);
        let m = first + stream.below(steps - first);
        let mut x = stream.normal_tensor(clean.shape().clone(), 1.0)?;
        let times = sampler.times().to_vec();
        for (step, &time) in times.iter().enumerate().take(m) {
            let guess = answer(&x, &vec![time; rows.len()])?;
            x = sampler.step(step, &guess, &x, None)?;
            if step + options.backprop_steps <= m {
                x = x.detach();
            }
        }
        let guess = answer(&x, &vec![times[m]; rows.len()])?;
        let (guess, _) = schedule.clean_and_noise(prediction, &x, &guess, times[m] as usize)?;
        let decoded = model.vae.decode(&(guess / model.vae.config().scaling_factor)?)?;
        let score = judge.score(&to_unit_range(&decoded)?, &texts)?;
        let reward = wishes.standard.apply(&score)?;
        total = Some(reward_loss(&reward, options.lambda, options.target)?);
    }
    if options.pretraining_loss || total.is_none() {
        let times: Vec<usize> = rows.iter().map(|_| stream.below(schedule.len())).collect();
        let noise = stream.normal_tensor(clean.shape().clone(), 1.0)?;
        let noisy = schedule.add_noise(&clean, &noise, &times)?;
        let target = schedule.target(prediction, &clean, &noise, &times)?;
        let times: Vec<f64> = times.into_iter().map(|time| time as f64).collect();
        let loss = ops::mean_squared_error(&answer(&noisy, &times)?, &target)?;
        total = Some(match total {
            Some(reward) => (reward + loss)?,
            None => loss,
        });
    }
    total.ok_or_else(|| Error::Bug("a ReFL step without any loss".into()))
}

/// Trains the adapters for the steps of all stages; resumes from `work`.
///
/// # Errors
/// Those of [`train`].
pub fn fit(
    model: &StableDiffusion,
    adapters: &Parameters,
    judge: &Judge,
    wishes: &Wishes,
    options: &ReflOptions,
    seed: Seed,
    work: &Path,
) -> Result<History> {
    let pace = Pace {
        steps: options.stages.iter().map(|stage| stage.steps).sum(),
        batch: options.batch,
        lr: options.lr,
        weight_decay: 0.0,
        ..Pace::default()
    };
    let rewarded = options.stages.iter().any(|stage| stage.clip != 0.0);
    let loss = |step: u64, slice: usize| {
        let mut stream = seed.stream(&format!("stable/{step}/{slice}"));
        let rows: Vec<u32> =
            (0..options.batch / SLICES).map(|_| stream.below(wishes.len()) as u32).collect();
        let value = refl_loss(model, judge, wishes, &rows, options, rewarded, &mut stream)?;
        Ok((value / SLICES as f64)?)
    };
    train("stable", adapters, &pace, None, work, Ok, loss)
}
