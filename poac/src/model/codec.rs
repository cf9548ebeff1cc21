//! The latent code of pictures: a linear autoencoder whose tokens are patches.
//!
//! Each 8 × 8 patch is described by its largest principal components (a linear autoencoder at its
//! optimum), scaled so that the average component has unit variance while coarse ones keep more
//! than fine ones. Decoding is linear, so reward gradients pass exactly.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use common::rng::Seed;
use common::{Error, Result, ops};
use ndarray::Array2;

use crate::projection::Projection;

/// Pixels of a patch's side.
pub const PATCH: usize = 8;

/// Patch code with `components` values a token.
#[derive(Debug, Clone)]
pub struct Codec {
    /// `[3 · PATCH²]`
    mean: Tensor,
    /// `[components, 3 · PATCH²]`: patch → code.
    encode: Tensor,
    /// `[3 · PATCH², components]`: code → patch.
    decode: Tensor,
}

impl Codec {
    /// Fits the code to pictures `[n, 3, size, size]`.
    ///
    /// # Errors
    /// [`Error::Usage`] when `components` exceeds the values of a patch or the size is no multiple of
    /// [`PATCH`].
    pub fn fit(pictures: &Tensor, components: usize, seed: Seed) -> Result<Self> {
        let patches = patches(pictures)?;
        let (n, tokens, width) = patches.dims3()?;
        let values = patches.flatten_all()?.to_vec1::<f32>()?;
        let rows = Array2::from_shape_vec((n * tokens, width), values)
            .map_err(|error| Error::Bug(error.to_string()))?;
        let projection = Projection::fit(&rows, components, seed)?;
        let codes = projection.apply(&rows);
        let deviations: Vec<f32> = codes
            .columns()
            .into_iter()
            .map(|column| (column.dot(&column) / column.len() as f32).sqrt().max(1e-4))
            .collect();
        // half whitening: deviation √s instead of s, then unit variance on average
        let average = deviations.iter().sum::<f32>() / components as f32;
        let scales: Vec<f32> = deviations.iter().map(|s| (s * average).sqrt()).collect();
        let [mean, axes] = projection.tensors()?;
        let scales = Tensor::from_vec(scales, (1, components), &Device::Cpu)?;
        let decode = axes.broadcast_mul(&scales)?;
        let encode = axes.broadcast_div(&scales)?.t()?.contiguous()?;
        Ok(Self { mean, encode, decode })
    }

    /// From a weight file.
    ///
    /// # Errors
    /// [`Error::Asset`] on an absent tensor or a wrong shape.
    pub fn from_tensors(tensors: &BTreeMap<String, Tensor>, components: usize) -> Result<Self> {
        let width = 3 * PATCH * PATCH;
        let take = |name: &str, shape: &[usize]| {
            let found = tensors.get(name).filter(|tensor| tensor.dims() == shape);
            found.cloned().ok_or_else(|| {
                let problem = format!("no {name} of shape {shape:?}");
                Error::asset("codec weights", problem, "train again with `poac fit`")
            })
        };
        Ok(Self {
            mean: take("codec.mean", &[width])?,
            encode: take("codec.encode", &[components, width])?,
            decode: take("codec.decode", &[width, components])?,
        })
    }

    /// For a weight file.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        BTreeMap::from([
            ("codec.mean".to_owned(), self.mean.clone()),
            ("codec.encode".to_owned(), self.encode.clone()),
            ("codec.decode".to_owned(), self.decode.clone()),
        ])
    }

    /// `[n, 3, size, size]` → `[n, tokens, components]`.
    pub fn encode(&self, pictures: &Tensor) -> Result<Tensor> {
        let centred = patches(pictures)?.broadcast_sub(&self.mean)?;
        Ok(ops::linear(&centred, &self.encode, None)?)
    }

    /// Eq. 5 without the clamp: `[n, tokens, components]` → `[n, 3, size, size]`.
    pub fn decode(&self, codes: &Tensor) -> Result<Tensor> {
        unpatch(&ops::linear(codes, &self.decode, Some(&self.mean))?)
    }
}

/// `[n, 3, s, s]` → `[n, (s/8)², 3 · 64]`.
fn patches(pictures: &Tensor) -> Result<Tensor> {
    let (n, channels, size, _) = pictures.dims4()?;
    if size % PATCH != 0 || channels != 3 {
        return Err(Error::usage(format!("pictures of {size} pixels; use a multiple of {PATCH}")));
    }
    let side = size / PATCH;
    let split = pictures.reshape(&[n, channels, side, PATCH, side, PATCH][..])?;
    let tokens = split.permute(vec![0, 2, 4, 1, 3, 5])?.contiguous()?;
    Ok(tokens.reshape((n, side * side, channels * PATCH * PATCH))?)
}

/// The inverse of [`patches`].
fn unpatch(tokens: &Tensor) -> Result<Tensor> {
    let (n, count, _) = tokens.dims3()?;
    let side = (count as f64).sqrt().round() as usize;
    let split = tokens.reshape(&[n, side, side, 3, PATCH, PATCH][..])?;
    let joined = split.permute(vec![0, 3, 1, 4, 2, 5])?.contiguous()?;
    Ok(joined.reshape((n, 3, side * PATCH, side * PATCH))?)
}
