//! Training of the denoiser on captioned pictures (Eq. 7 is its loss).

use std::path::Path;

use candle_core::Tensor;
use common::rng::{Seed, Stream};
use common::{Result, ops};

use super::{History, Pace, SLICES, train};
use crate::data::pairs::{OBJECTS, optimised};
use crate::data::{Images, Style, World};
use crate::features::Features;
use crate::model::{Codec, Denoiser, Prediction, Schedule, TextBatch};

/// The pictures as codes, and captions for them.
#[derive(Debug)]
pub struct Captioned<'a> {
    world: &'a World,
    features: &'a Features,
    /// Codes of all objects in each style, `[objects, tokens, components]`.
    codes: [Tensor; 2],
    /// Keywords of each object that name something visible.
    visible: Vec<Vec<&'a str>>,
}

/// A batch of codes and captions.
#[derive(Debug, Clone)]
pub struct CaptionedBatch {
    /// `[n, tokens, components]`
    pub codes: Tensor,
    /// Captions as features.
    pub text: TextBatch,
}

impl<'a> Captioned<'a> {
    /// Encodes all pictures in both styles.
    ///
    /// # Errors
    /// None but bugs.
    pub fn new(
        world: &'a World,
        images: &Images,
        codec: &Codec,
        features: &'a Features,
    ) -> Result<Self> {
        let encode = |style: Style| {
            let all: Vec<(usize, Style)> = (0..images.len()).map(|at| (at, style)).collect();
            codec.encode(&images.batch(&all)?)
        };
        let visible = |object: &'a crate::data::Object| {
            let keep = |word: &&String| {
                let concept = world.concept(word);
                concept.is_some_and(|c| {
                    !c.abstract_word && c.split == crate::data::world::Split::Train
                })
            };
            object.keywords.iter().filter(keep).map(String::as_str).collect()
        };
        let visible = world.objects.iter().map(visible).collect();
        let codes = [encode(Style::Colour)?, encode(Style::Grey)?];
        Ok(Self { world, features, codes, visible })
    }

    /// Codes of one style, `[objects, tokens, components]`.
    pub fn codes(&self, style: Style) -> &Tensor {
        &self.codes[style as usize]
    }

    /// `rows` pictures with captions: mostly the name, sometimes other names beside it or a keyword
    /// that names something visible, sometimes nothing (for guidance).
    ///
    /// # Errors
    /// None but bugs.
    pub fn draw(&self, rows: usize, stream: &mut Stream) -> Result<CaptionedBatch> {
        let (mut codes, mut captions) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        for _ in 0..rows {
            let object = stream.below(self.world.objects.len());
            let style = if stream.chance(0.2) { Style::Grey } else { Style::Colour };
            codes.push(self.codes(style).get(object)?);
            let name = self.world.objects[object].name.as_str();
            let kind = stream.uniform();
            captions.push(if kind < 0.1 {
                String::new()
            } else if kind < 0.25 && !self.visible[object].is_empty() {
                let words = &self.visible[object];
                optimised(&[words[stream.below(words.len())]], style)
            } else if kind < 0.5 {
                let others = 1 + stream.below(OBJECTS - 1);
                let mut names = vec![name];
                for _ in 0..others {
                    let other = stream.below(self.world.objects.len());
                    names.push(self.world.objects[other].name.as_str());
                }
                optimised(&names, style)
            } else {
                optimised(&[name], style)
            });
        }
        Ok(CaptionedBatch {
            codes: Tensor::stack(&codes, 0)?,
            text: self.features.batch(&captions)?,
        })
    }
}

/// Eq. 7 on a batch: noise at random times is added and the denoiser's answer compared.
///
/// # Errors
/// None but bugs.
pub fn denoising_loss(
    denoiser: &Denoiser,
    schedule: &Schedule,
    prediction: Prediction,
    batch: &CaptionedBatch,
    stream: &mut Stream,
) -> Result<Tensor> {
    let rows = batch.codes.dim(0)?;
    let times: Vec<usize> = (0..rows).map(|_| stream.below(schedule.len())).collect();
    let noise = stream.normal_tensor(batch.codes.shape().clone(), 1.0)?;
    let noisy = schedule.add_noise(&batch.codes, &noise, &times)?;
    let target = schedule.target(prediction, &batch.codes, &noise, &times)?;
    let answer = denoiser.forward(&noisy, &times, &batch.text)?;
    Ok(ops::mean_squared_error(&answer, &target)?)
}

/// Trains the denoiser; it ends as the moving average of its weights.
///
/// # Errors
/// Those of [`train`].
pub fn fit(
    denoiser: &Denoiser,
    schedule: &Schedule,
    prediction: Prediction,
    captioned: &Captioned<'_>,
    pace: &Pace,
    seed: Seed,
    work: &Path,
) -> Result<History> {
    let rows = pace.batch / SLICES;
    let loss = |step: u64, slice: usize| {
        let mut stream = seed.stream(&format!("denoiser/{step}/{slice}"));
        let batch = captioned.draw(rows, &mut stream)?;
        let value = denoising_loss(denoiser, schedule, prediction, &batch, &mut stream)?;
        Ok((value / SLICES as f64)?)
    };
    train("denoiser", denoiser.parameters(), pace, Some(0.995), work, Ok, loss)
}
