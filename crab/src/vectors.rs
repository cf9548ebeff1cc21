//! Item vectors: what the tokenizer sees.

use common::assets::Assets;
use common::encode::TextEncoder;
use common::rng::Seed;
use common::{Error, Result};
use ndarray::Array2;

use crate::config::{TokenizerConfig, VectorSource};
use crate::data::Dataset;
use crate::tokenizer::{Codebook, residual_kmeans, train_rqvae};

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
        VectorSource::Interactions => Ok(interactions(data, 64, seed)),
        VectorSource::Text if data.texts.iter().all(|text| text.trim().is_empty()) => {
            Err(Error::usage(format!(
                "{} has no item texts; use --set tokenizer.vectors=interactions",
                data.name
            )))
        }
        VectorSource::Text => {
            let encoder =
                TextEncoder::minilm(assets)?.with_cache(&assets.options().cache.join("vectors"))?;
            encoder.encode(&data.texts)
        }
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
