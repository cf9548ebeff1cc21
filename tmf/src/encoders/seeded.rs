//! Small encoders with seeded random weights: no download, enough for the synthetic catalogue, and
//! the fallback where a pretrained encoder is not at hand.

use std::collections::HashMap;

use common::rng::Seed;
use ndarray::Array2;

use super::image::Picture;

/// Side of the picture that [`images`] looks at.
const SIDE: usize = 24;
/// Side of its patches.
const PATCH: usize = 4;

/// Mean over the words of a random vector per word; `[texts, width]`. Words are lower-cased runs of
/// letters and digits. A text without words has no vector.
pub fn texts(texts: &[impl AsRef<str>], width: usize, seed: Seed) -> (Array2<f32>, Vec<bool>) {
    let mut known: HashMap<String, Vec<f32>> = HashMap::new();
    let mut vectors = Array2::zeros((texts.len(), width));
    let mut present = vec![false; texts.len()];
    for (at, text) in texts.iter().enumerate() {
        let lower = text.as_ref().to_lowercase();
        let words: Vec<&str> =
            lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
        present[at] = !words.is_empty();
        for word in &words {
            let vector = known.entry((*word).to_owned()).or_insert_with(|| {
                let mut stream = seed.stream(&format!("word/{word}"));
                (0..width).map(|_| stream.normal() as f32).collect()
            });
            for (sum, value) in vectors.row_mut(at).iter_mut().zip(vector) {
                *sum += *value / words.len() as f32;
            }
        }
    }
    (vectors, present)
}

/// Random features of 4 × 4 patches of the picture at 24 × 24, rectified and averaged over the
/// patches; `[pictures, width]`.
pub fn images(pictures: &[Option<Picture>], width: usize, seed: Seed) -> (Array2<f32>, Vec<bool>) {
    let inputs = PATCH * PATCH * 3;
    let mut stream = seed.stream("image encoder");
    let scale = 1.0 / (inputs as f64).sqrt();
    let weights =
        Array2::from_shape_simple_fn((width, inputs), || (stream.normal() * scale) as f32);
    let bias: Vec<f32> = (0..width).map(|_| (stream.normal() * 0.3) as f32).collect();
    let mut vectors = Array2::zeros((pictures.len(), width));
    for (at, picture) in pictures.iter().enumerate() {
        let Some(picture) = picture else { continue };
        let small = picture.resized(SIDE, SIDE);
        let patches = (SIDE / PATCH) * (SIDE / PATCH);
        for top in (0..SIDE).step_by(PATCH) {
            for left in (0..SIDE).step_by(PATCH) {
                let mut patch = Vec::with_capacity(inputs);
                for y in top..top + PATCH {
                    for x in left..left + PATCH {
                        patch.extend(small.pixel(x, y).map(|v| f32::from(v) / 127.5 - 1.0));
                    }
                }
                for (feature, row) in weights.outer_iter().enumerate() {
                    let sum: f32 = row.iter().zip(&patch).map(|(w, p)| w * p).sum();
                    vectors[(at, feature)] += (sum + bias[feature]).max(0.0) / patches as f32;
                }
            }
        }
    }
    (vectors, pictures.iter().map(Option::is_some).collect())
}

/// Mean over an item's graph nodes of a random vector per node; `[items, width]`.
pub fn links(
    links: &[(u32, u32)],
    items: usize,
    width: usize,
    seed: Seed,
) -> (Array2<f32>, Vec<bool>) {
    let mut counts = vec![0f32; items];
    links.iter().for_each(|&(item, _)| counts[item as usize] += 1.0);
    let mut vectors = Array2::zeros((items, width));
    for &(item, node) in links {
        let mut stream = seed.stream(&format!("node/{node}"));
        for value in vectors.row_mut(item as usize) {
            *value += stream.normal() as f32 / counts[item as usize];
        }
    }
    (vectors, counts.into_iter().map(|count| count > 0.0).collect())
}
