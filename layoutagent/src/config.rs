//! Configuration. The paper names no value that can be read; defaults follow Diffusion-CCSP, and
//! where they are ours their documentation says so.

use std::path::PathBuf;

use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::segment::fit::SegmentConfig;
use crate::solve::SolveConfig;
use crate::train::TrainConfig;

/// Everything that a run depends on, besides the seed and the input files.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The relation networks and their training.
    pub train: TrainConfig,
    /// Weights of `fit` to use; they must fit `train.width` and `train.steps`. Without it the bundled
    /// ones if `train` is the default, else networks that are trained once and kept in the cache.
    pub weights: Option<PathBuf>,
    /// Solvers.
    pub solve: SolveConfig,
    /// The segmentation network's training.
    pub segment: SegmentConfig,
    /// The benchmark.
    pub bench: BenchConfig,
}

/// The benchmark's size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BenchConfig {
    /// Test worlds per number of objects; 100 in the published protocol.
    pub worlds: usize,
    /// NSR-1K scenes, from the first; the split has 738.
    pub nsr_scenes: usize,
    /// Product scenes; there are 40.
    pub product_scenes: usize,
    /// Product scenes that a language model lays out too.
    pub llm_scenes: usize,
    /// Composites of held-out emoji for the segmentation, by box and by point each.
    pub composites: usize,
    /// Numbers of objects of the crowded scenes.
    pub crowds: Vec<usize>,
    /// Updates of networks that the bench trains itself, as an ablation of the training budget;
    /// 0 = none.
    pub short_updates: usize,
    /// Worlds of the ablations of sampler and energies.
    pub ablation_worlds: usize,
    /// Resamples of every bootstrap interval.
    pub resamples: usize,
}

impl Default for BenchConfig {
    fn default() -> Self {
        Self {
            worlds: 100,
            nsr_scenes: 738,
            product_scenes: 40,
            llm_scenes: 8,
            composites: 200,
            crowds: vec![20, 50, 200],
            short_updates: 1_000,
            ablation_worlds: 30,
            resamples: 1_000,
        }
    }
}

impl Config {
    /// Seconds: for continuous integration.
    pub fn smoke() -> Self {
        let bench = BenchConfig {
            worlds: 6,
            nsr_scenes: 60,
            product_scenes: 4,
            llm_scenes: 0,
            composites: 20,
            crowds: vec![20],
            short_updates: 0,
            ablation_worlds: 0,
            resamples: 200,
        };
        let train =
            TrainConfig { width: 32, worlds: 2_000, updates: 500, ..TrainConfig::default() };
        Self { bench, train, ..Self::default() }
    }

    /// Minutes on two cores.
    pub fn cpu() -> Self {
        Self::default()
    }

    /// The reference's networks and sampler: width 256, T = 1,000, 10 inner steps, 300,000 updates
    /// of 128 graphs.
    pub fn paper() -> Self {
        let mut config = Self::default();
        config.train = TrainConfig {
            width: 256,
            steps: 1_000,
            worlds: 30_000,
            batch: 128,
            updates: 300_000,
            learning_rate: 5e-4,
            thinned: 0.0,
            one_time_per_batch: true,
            ..config.train
        };
        config.solve.sample.inner_steps = 10;
        config.solve.sample.inner_size = 2.0;
        config.solve.sample.inner_at_last = true;
        config
    }

    /// Values that no rule of serde can refuse.
    ///
    /// # Errors
    /// [`Error::Usage`] with key, value and range.
    pub fn check(&self) -> Result<()> {
        let in_range = |key: &str, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(Error::usage(format!("config key {key}: found {value}, expected {low} to {high}")))
        };
        let train = &self.train;
        in_range("train.width", train.width, 8, 1024)?;
        if !train.width.is_multiple_of(4) {
            let width = train.width;
            return Err(Error::usage(format!(
                "config key train.width: found {width}, expected a multiple of 4"
            )));
        }
        in_range("train.steps", train.steps, 2, 10_000)?;
        in_range("train.worlds", train.worlds, 1, 10_000_000)?;
        in_range("train.objects", train.objects, 2, 8)?;
        in_range("train.batch", train.batch, 2, 4096)?;
        in_range("train.updates", train.updates, 1, 10_000_000)?;
        in_range("segment.updates", self.segment.updates, 1, 1_000_000)?;
        in_range("segment.batch", self.segment.batch, 2, 4096)?;
        in_range("solve.candidates", self.solve.candidates, 1, 1000)?;
        in_range("bench.worlds", self.bench.worlds, 1, 100_000)?;
        in_range("bench.resamples", self.bench.resamples, 10, 1_000_000)?;
        for &crowd in &self.bench.crowds {
            in_range("bench.crowds", crowd, 2, 500)?;
        }
        let rates = [
            ("train.learning_rate", train.learning_rate, 1.0),
            ("train.thinned", train.thinned, 1.0),
            ("solve.step_size", self.solve.step_size, 1.0),
            ("solve.noise", self.solve.noise, 10.0),
            ("solve.sample.inner_size", self.solve.sample.inner_size, 10.0),
        ];
        for (key, value, most) in rates {
            if !(0.0..=most).contains(&value) {
                return Err(Error::usage(format!(
                    "config key {key}: found {value}, expected 0 to {most}"
                )));
            }
        }
        Ok(())
    }
}
