//! Training of the dual encoders: scorer A (reward) and scorer B (evaluation only).

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{Device, Tensor};
use common::Result;
use common::rng::{Seed, Stream};

use super::{History, Pace, SLICES, train};
use crate::data::world::Split;
use crate::data::{Images, Style, World};
use crate::features::Features;
use crate::model::Scorer;

/// Which half of the changes to pictures a scorer sees, and which keywords.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The reward: shifts and noise; keywords of the train split.
    A,
    /// The judge: mirroring, blur and brightness; all keywords.
    B,
}

/// Trains a scorer on pictures with their names and keywords.
///
/// # Errors
/// Those of [`train`].
#[allow(clippy::too_many_arguments)] // each is a different thing
pub fn fit(
    scorer: &Scorer,
    world: &World,
    images: &Images,
    features: &Features,
    side: Side,
    pace: &Pace,
    seed: Seed,
    work: &Path,
) -> Result<History> {
    let seen: Vec<Vec<&str>> = world
        .objects
        .iter()
        .map(|object| {
            let keep = |word: &&String| match (side, world.concept(word)) {
                (Side::B, Some(_)) => true,
                (Side::A, Some(concept)) => concept.split == Split::Train,
                (_, None) => false,
            };
            object.keywords.iter().filter(keep).map(String::as_str).collect()
        })
        .collect();
    let filed: Vec<BTreeSet<&str>> =
        world.objects.iter().map(|o| o.keywords.iter().map(String::as_str).collect()).collect();
    let rows = pace.batch / SLICES;
    let loss = |step: u64, slice: usize| {
        let mut stream = seed.stream(&format!("scorer-{side:?}/{step}/{slice}"));
        let chosen = stream.sample(world.objects.len(), rows);
        let (mut pictures, mut captions) = (Vec::new(), Vec::new());
        for &object in &chosen {
            let style = if stream.chance(0.25) { Style::Grey } else { Style::Colour };
            let mut values = images.values(object, style);
            change(&mut values, images.size(), side, &mut stream);
            pictures.extend(values);
            let words = &seen[object];
            let keyword = !words.is_empty() && stream.chance(0.5);
            let name = world.objects[object].name.as_str();
            captions.push(if keyword { words[stream.below(words.len())] } else { name });
        }
        let fits = |row: usize, column: usize| {
            row == column || filed[chosen[row]].contains(captions[column])
        };
        let positives: Vec<f32> =
            (0..rows * rows).map(|at| f32::from(u8::from(fits(at / rows, at % rows)))).collect();
        let positives = Tensor::from_vec(positives, (rows, rows), &Device::Cpu)?;
        let size = images.size();
        let pictures = Tensor::from_vec(pictures, (rows, 3, size, size), &Device::Cpu)?;
        let texts = scorer.embed_texts(&features.batch(&captions)?.mean()?)?;
        let value = scorer.loss(&scorer.embed_images(&pictures)?, &texts, &positives)?;
        Ok((value / SLICES as f64)?)
    };
    let name = format!("scorer-{side:?}");
    train(&name, scorer.parameters(), pace, Some(0.99), work, Ok, loss)
}

/// Random changes of a picture `[3, size, size]` that leave its meaning.
fn change(values: &mut Vec<f32>, size: usize, side: Side, stream: &mut Stream) {
    match side {
        Side::A => {
            let offset = |stream: &mut Stream| stream.below(7) as i64 - 3;
            let (dx, dy) = (offset(stream), offset(stream));
            *values = moved(values, size, |x, y| (x - dx, y - dy));
            let sd = 0.3 * stream.uniform();
            values.iter_mut().for_each(|value| *value += (sd * stream.normal()) as f32);
        }
        Side::B => {
            if stream.chance(0.5) {
                let last = size as i64 - 1;
                *values = moved(values, size, |x, y| (last - x, y));
            }
            if stream.chance(0.5) {
                *values = blurred(values, size);
            }
            let offset = |stream: &mut Stream| stream.below(3) as i64 - 1;
            let (dx, dy) = (offset(stream), offset(stream));
            *values = moved(values, size, |x, y| (x - dx, y - dy));
            let (gain, shift) = (0.8 + 0.4 * stream.uniform(), 0.2 * (stream.uniform() - 0.5));
            let sd = 0.1 * stream.uniform();
            for value in values.iter_mut() {
                *value = ((f64::from(*value) - 1.0) * gain + 1.0 + shift) as f32
                    + (sd * stream.normal()) as f32;
            }
        }
    }
}

/// Every pixel taken from `from(x, y)`; white outside.
fn moved(values: &[f32], size: usize, from: impl Fn(i64, i64) -> (i64, i64)) -> Vec<f32> {
    let area = size * size;
    let inside = 0..size as i64;
    (0..values.len())
        .map(|at| {
            let (channel, pixel) = (at / area, at % area);
            let (x, y) = from((pixel % size) as i64, (pixel / size) as i64);
            if inside.contains(&x) && inside.contains(&y) {
                values[channel * area + y as usize * size + x as usize]
            } else {
                1.0
            }
        })
        .collect()
}

/// Mean of 3 × 3 pixels; white outside.
pub fn blurred(values: &[f32], size: usize) -> Vec<f32> {
    let shifts = (-1..=1).flat_map(|dy| (-1..=1).map(move |dx| (dx, dy)));
    let mut sum = vec![0.0; values.len()];
    for (dx, dy) in shifts {
        let shifted = moved(values, size, |x, y| (x + dx, y + dy));
        sum.iter_mut().zip(shifted).for_each(|(sum, value)| *sum += value / 9.0);
    }
    sum
}
