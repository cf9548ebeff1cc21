//! Item vectors: what the tokenizer sees.

use std::collections::BTreeMap;

use common::assets::Assets;
use common::encode::TextEncoder;
use common::rng::Seed;
use common::{Error, Result};
use ndarray::{Array2, Axis};

use crate::config::{TokenizerConfig, VectorSource};
use crate::data::Dataset;
use crate::tokenizer::{Codebook, residual_kmeans, train_rqvae};

/// Length of the vectors that are not an encoder's.
const WIDTH: usize = 64;

/// One vector per item, `[items, width]`.
///
/// # Errors
/// An absent encoder; [`VectorSource::Text`] on data without texts.
pub fn item_vectors(
    data: &Dataset,
    source: VectorSource,
    assets: &Assets,
    seed: Seed,
) -> Result<Array2<f32>> {
    match source {
        VectorSource::Interactions => Ok(interactions(data, WIDTH, seed)),
        VectorSource::Text | VectorSource::Words
            if data.texts.iter().all(|text| text.trim().is_empty()) =>
        {
            Err(Error::usage(format!(
                "{} has no item texts; use --set tokenizer.vectors=interactions",
                data.name
            )))
        }
        VectorSource::Words => Ok(words(&data.texts, WIDTH, seed)),
        VectorSource::Text => {
            let encoder =
                TextEncoder::minilm(assets)?.with_cache(&assets.options().cache.join("vectors"))?;
            Ok(main_directions(&encoder.encode(&data.texts)?, WIDTH, seed))
        }
    }
}

/// TF-IDF rows of unit length over the words that two texts share, projected onto their `width`
/// main directions (truncated SVD by subspace iteration; the basis inside the subspace is
/// arbitrary, which no Euclidean method sees).
pub fn words(texts: &[String], width: usize, seed: Seed) -> Array2<f32> {
    let lower: Vec<String> = texts.iter().map(|text| text.to_lowercase()).collect();
    let counts: Vec<BTreeMap<&str, f32>> = lower.iter().map(|text| word_counts(text)).collect();
    let mut documents: BTreeMap<&str, f32> = BTreeMap::new();
    for word in counts.iter().flat_map(BTreeMap::keys) {
        *documents.entry(word).or_insert(0.0) += 1.0;
    }
    documents.retain(|_, number| *number >= 2.0);
    let column: BTreeMap<&str, usize> =
        documents.keys().enumerate().map(|(at, word)| (*word, at)).collect();
    let rows: Vec<Vec<(usize, f32)>> = counts
        .iter()
        .map(|counts| {
            let weight = |(word, count): (&&str, &f32)| {
                let frequency = documents.get(*word)?;
                let rarity = ((1.0 + texts.len() as f32) / (1.0 + frequency)).ln() + 1.0;
                Some((column[*word], count * rarity))
            };
            let row: Vec<(usize, f32)> = counts.iter().filter_map(weight).collect();
            let norm = row.iter().map(|(_, w)| w * w).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            row.into_iter().map(|(at, w)| (at, w / norm)).collect()
        })
        .collect();
    let mut stream = seed.stream("vectors/words");
    let mut basis = Array2::from_shape_fn((column.len(), width), |_| stream.normal() as f32);
    for _ in 0..6 {
        let projected = project(&rows, &basis);
        basis.fill(0.0);
        for (row, image) in rows.iter().zip(projected.rows()) {
            for &(at, weight) in row {
                basis.row_mut(at).scaled_add(weight, &image);
            }
        }
        orthonormalise(&mut basis);
    }
    project(&rows, &basis)
}

/// Rows projected onto their `width` main directions (at most as many as they have columns):
/// residual k-means in all directions of an encoder mostly models noise.
fn main_directions(rows: &Array2<f32>, width: usize, seed: Seed) -> Array2<f32> {
    let width = width.min(rows.ncols());
    let mut stream = seed.stream("vectors/directions");
    let mut basis = Array2::from_shape_fn((rows.ncols(), width), |_| stream.normal() as f32);
    for _ in 0..6 {
        basis = rows.t().dot(&rows.dot(&basis));
        orthonormalise(&mut basis);
    }
    rows.dot(&basis)
}

/// Words of at least two letters or digits and how often they occur.
fn word_counts(text: &str) -> BTreeMap<&str, f32> {
    let mut counts = BTreeMap::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() > 1) {
        *counts.entry(word).or_insert(0.0) += 1.0;
    }
    counts
}

/// Sparse rows times `basis`.
fn project(rows: &[Vec<(usize, f32)>], basis: &Array2<f32>) -> Array2<f32> {
    let mut image = Array2::zeros((rows.len(), basis.ncols()));
    for (row, mut image) in rows.iter().zip(image.rows_mut()) {
        row.iter().for_each(|&(at, weight)| image.scaled_add(weight, &basis.row(at)));
    }
    image
}

/// Gram-Schmidt over columns; a column that depends on those before becomes 0.
fn orthonormalise(basis: &mut Array2<f32>) {
    for column in 0..basis.ncols() {
        let (before, mut rest) = basis.view_mut().split_at(Axis(1), column);
        let mut own = rest.column_mut(0);
        let start = own.dot(&own).sqrt();
        for other in before.columns() {
            let share = own.dot(&other);
            own.scaled_add(-share, &other);
        }
        let norm = own.dot(&own).sqrt();
        let scale = if norm > 1e-5 * start { 1.0 / norm } else { 0.0 };
        own.mapv_inplace(|value| value * scale);
    }
}

/// The code book that a config asks for.
///
/// # Errors
/// Those of the tokenizers.
pub fn code_book(points: Array2<f32>, config: &TokenizerConfig, seed: Seed) -> Result<Codebook> {
    match &config.rqvae {
        Some(options) => train_rqvae(&points, &config.codes, None, options, seed),
        None => residual_kmeans(points, &config.codes, config.assignment, seed),
    }
}

/// Each user of the training sequences gets a random direction; an item is the mean direction of
/// its users, weighted by 1 / √(length of the user's sequence). Items of the same users come out
/// alike (a random projection of the user–item matrix).
fn interactions(data: &Dataset, width: usize, seed: Seed) -> Array2<f32> {
    let mut vectors = Array2::<f32>::zeros((data.items(), width));
    let mut stream = seed.stream("vectors/interactions");
    for sequence in &data.train {
        let weight = 1.0 / (sequence.len().max(1) as f64).sqrt();
        let direction: Vec<f32> = (0..width).map(|_| (stream.normal() * weight) as f32).collect();
        for &item in sequence {
            let mut row = vectors.row_mut(item as usize);
            row.iter_mut().zip(&direction).for_each(|(v, d)| *v += d);
        }
    }
    for mut row in vectors.rows_mut() {
        let norm = row.dot(&row).sqrt();
        if norm > 0.0 {
            row /= norm;
        }
    }
    vectors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_same_words_lie_together() {
        let topics = ["red steel bolt", "blue nylon rope", "steel bolt thread", "soft nylon rope"];
        let texts: Vec<String> = (0..40).map(|at| format!("{} x{at}", topics[at % 4])).collect();
        let points = words(&texts, 4, Seed::new(1));
        let near = |a: usize, b: usize| points.row(a).dot(&points.row(b));
        assert!((near(0, 0) - 1.0).abs() < 1e-3, "all words that count lie in the subspace");
        assert!(near(0, 4) > 0.99 && near(0, 2) > 0.3, "{} {}", near(0, 4), near(0, 2));
        assert!(near(0, 1).abs() < 0.05, "{}", near(0, 1));
    }

    #[test]
    fn texts_without_a_shared_word_get_zeros() {
        let texts = ["one".to_owned(), "two".to_owned()];
        assert!(words(&texts, 4, Seed::new(1)).iter().all(|value| *value == 0.0));
    }
}
