//! Training of the quality heads on pictures of known degradation (§5.3).

use std::path::Path;

use candle_core::{Device, Tensor};
use common::Result;
use common::rng::{Seed, Stream};

use super::scorer::blurred;
use super::{History, Pace, train};
use crate::data::{Images, Style};
use crate::model::{QualityHead, Scorer};

/// Widths of the head after its input: LAION's, an eighth as wide.
pub const WIDTHS: [usize; 5] = [128, 16, 8, 4, 1];

/// A degraded picture and its quality: 1 = untouched, 0 = unrecognisable. Blur, noise and patches
/// of other pictures, by one level.
fn degraded(images: &Images, stream: &mut Stream) -> (Vec<f32>, f32) {
    let object = stream.below(images.len());
    let style = if stream.chance(0.25) { Style::Grey } else { Style::Colour };
    let (size, level) = (images.size(), stream.uniform());
    let mut values = images.values(object, style);
    match stream.below(3) {
        0 => {
            for _ in 0..(level * 8.0).round() as usize {
                values = blurred(&values, size);
            }
        }
        1 => values.iter_mut().for_each(|v| *v += (level * stream.normal()) as f32),
        _ => {
            let other = images.values(stream.below(images.len()), style);
            let area = size * size;
            for patch in 0..(size / 4).pow(2) {
                if !stream.chance(level) {
                    continue;
                }
                let (left, top) = (patch % (size / 4) * 4, patch / (size / 4) * 4);
                for at in 0..3 * 16 {
                    let (channel, y, x) = (at / 16, at % 16 / 4, at % 4);
                    let place = channel * area + (top + y) * size + left + x;
                    values[place] = other[place];
                }
            }
        }
    }
    (values, (1.0 - level) as f32)
}

/// Trains a head on the features of a frozen scorer.
///
/// # Errors
/// Those of [`train`].
pub fn fit(
    head: &QualityHead,
    scorer: &Scorer,
    images: &Images,
    pictures: usize,
    seed: Seed,
    work: &Path,
) -> Result<History> {
    let size = images.size();
    let mut stream = seed.stream("quality");
    let (mut features, mut scores) = (Vec::new(), Vec::new());
    for _ in 0..pictures.div_ceil(64) {
        let (mut values, mut known) = (Vec::new(), Vec::new());
        for _ in 0..64 {
            let (picture, quality) = degraded(images, &mut stream);
            values.extend(picture);
            known.push(quality);
        }
        let batch = Tensor::from_vec(values, (64, 3, size, size), &Device::Cpu)?;
        features.push(scorer.image_features(&batch)?.detach());
        scores.extend(known);
    }
    let features = Tensor::cat(&features, 0)?;
    let rows = scores.len();
    let scores = Tensor::from_vec(scores, rows, &Device::Cpu)?;
    let pace = Pace { steps: 300, batch: 256, lr: 3e-3, ..Pace::default() };
    let loss = |step: u64, slice: usize| {
        let mut stream = seed.stream(&format!("quality/{step}/{slice}"));
        let chosen: Vec<u32> = (0..128).map(|_| stream.below(rows) as u32).collect();
        let chosen = Tensor::new(&chosen[..], &Device::Cpu)?;
        let (x, y) = (features.index_select(&chosen, 0)?, scores.index_select(&chosen, 0)?);
        Ok((head.loss(&x, &y)? * 0.5)?)
    };
    train("quality", head.parameters(), &pace, None, work, Ok, loss)
}
