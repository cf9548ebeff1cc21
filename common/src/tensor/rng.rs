//! Seeded randomness in streams named by purpose.
//!
//! Every random number of the workspace comes from a [`Stream`], so a seed fixes a run and two
//! purposes never share numbers. candle's CPU generator can't be seeded; clippy bans it.

use candle_core::{Device, Shape, Tensor};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Result;

/// The seed of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed(u64);

impl Seed {
    /// A seed from a number.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The number behind the seed.
    pub fn value(self) -> u64 {
        self.0
    }

    /// The stream of `purpose`, for example `"init"` or `"shuffle/epoch-3"`: SHA-256 of seed and
    /// purpose is the key of a ChaCha8 generator.
    pub fn stream(self, purpose: &str) -> Stream {
        let mut hash = Sha256::new();
        hash.update(self.0.to_le_bytes());
        hash.update(purpose.as_bytes());
        Stream(ChaCha8Rng::from_seed(hash.finalize().into()))
    }
}

/// A stream of random numbers. Serialises with its position, so a run can be resumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        self.0.random()
    }

    /// Uniform in `0..n`. `n` must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.random_range(0..n)
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        self.0.sample(rand_distr::StandardNormal)
    }

    /// True with probability `p` (clamped to `[0, 1]`).
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Index drawn in proportion to non-negative `weights`; the last one if their sum is 0.
    pub fn weighted(&mut self, weights: &[f64]) -> usize {
        let mut left = self.uniform() * weights.iter().sum::<f64>();
        for (index, weight) in weights.iter().enumerate() {
            left -= weight;
            if left < 0.0 {
                return index;
            }
        }
        weights.len().saturating_sub(1)
    }

    /// Shuffles in place.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        items.shuffle(&mut self.0);
    }

    /// A random order of `0..n`.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        self.shuffle(&mut order);
        order
    }

    /// `k` different numbers of `0..n` (all of them if `k > n`), in random order.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        rand::seq::index::sample(&mut self.0, n, k.min(n)).into_vec()
    }

    /// Any generator of the `rand` crates can be asked for through this.
    pub fn rng(&mut self) -> &mut impl Rng {
        &mut self.0
    }

    /// f32 tensor of independent normals with standard deviation `sd`.
    pub fn normal_tensor(&mut self, shape: impl Into<Shape>, sd: f64) -> Result<Tensor> {
        let shape = shape.into();
        let values: Vec<f32> =
            (0..shape.elem_count()).map(|_| (self.normal() * sd) as f32).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// f32 tensor of independent uniforms in `[low, high)`.
    pub fn uniform_tensor(
        &mut self,
        shape: impl Into<Shape>,
        low: f64,
        high: f64,
    ) -> Result<Tensor> {
        let shape = shape.into();
        let values: Vec<f32> =
            (0..shape.elem_count()).map(|_| (low + (high - low) * self.uniform()) as f32).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_and_purpose_give_the_same_numbers() {
        let draw = |seed, purpose| Seed::new(seed).stream(purpose).uniform();
        assert_eq!(draw(1, "init"), draw(1, "init"));
        assert_ne!(draw(1, "init"), draw(1, "shuffle"));
        assert_ne!(draw(1, "init"), draw(2, "init"));
    }

    #[test]
    fn a_saved_stream_continues_where_it_stood() {
        let mut stream = Seed::new(3).stream("x");
        stream.normal();
        let saved = serde_json::to_string(&stream).unwrap();
        let mut resumed: Stream = serde_json::from_str(&saved).unwrap();
        assert_eq!(stream.permutation(10), resumed.permutation(10));
    }

    #[test]
    fn weighted_draws_follow_the_weights() {
        let mut stream = Seed::new(4).stream("w");
        let ones = (0..10_000).filter(|_| stream.weighted(&[1.0, 3.0]) == 1).count();
        assert!((7_300..7_700).contains(&ones), "{ones}");
    }

    #[test]
    fn normal_tensor_has_the_asked_spread() {
        let tensor = Seed::new(5).stream("n").normal_tensor((100, 100), 2.0).unwrap();
        let variance = tensor.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((variance - 4.0).abs() < 0.2, "{variance}");
    }
}
