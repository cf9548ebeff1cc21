//! Configuration: one documented struct. The paper's sizes and settings are mostly not public; such
//! defaults are ours, as the crate's README says under "Departures from the paper".

use std::path::PathBuf;

use common::lm::{Allowed, BeamOptions, Hypothesis, Lm};
use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::WorldOptions;
use crate::model::{DenoiserOptions, SampleOptions, ScorerOptions};
use crate::train::Pace;
use crate::train::plm::PlmOptions;
use crate::train::ppo::PpoOptions;
use crate::train::refl::{Adapted, ReflOptions, Stage};
use common::diffusion::{Beta, Prediction};

/// Everything that a run depends on, besides the seed and the input files.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The emoji world.
    pub world: WorldOptions,
    /// CSV file with columns `Word` and `Concreteness` (1 to 5) for the gate; none = the list in the
    /// repository.
    pub concreteness: Option<PathBuf>,
    /// The prompt language model.
    pub plm: PlmOptions,
    /// Search for optimised prompts.
    pub search: SearchConfig,
    /// The dual encoders A and B.
    pub scorer: ScorerConfig,
    /// The denoiser.
    pub diffusion: DiffusionConfig,
    /// Reward feedback learning.
    pub refl: ReflOptions,
    /// Further settings of it for the emoji world: the one among all whose pictures of validation
    /// concepts have the best concept score is used.
    pub refl_others: Vec<ReflOptions>,
    /// Reinforcement learning of the language model, off by default.
    pub ppo: PpoOptions,
    /// The benchmark.
    pub bench: BenchConfig,
}

/// Search for optimised prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SearchConfig {
    /// Beams (8 as in Promptist).
    pub beams: usize,
    /// Exponent of the length in a hypothesis' score (−1 as in Promptist).
    pub length_penalty: f64,
    /// Groups that share the beams and avoid each other's tokens; 1 = ordinary beam search (Promptist
    /// explores with 16 groups of one beam each).
    pub groups: usize,
    /// What a token costs for each earlier group that goes on with it.
    pub diversity_penalty: f64,
}

impl SearchConfig {
    /// `count` hypotheses or more where there are as many, best first.
    ///
    /// # Errors
    /// Those of the model.
    pub fn run(
        &self,
        model: &Lm,
        prompt: &[u32],
        count: usize,
        options: BeamOptions,
        allowed: Option<&Allowed<'_>>,
    ) -> Result<Vec<Hypothesis>> {
        let options = BeamOptions {
            beams: self.beams.max(count).div_ceil(self.groups),
            groups: self.groups,
            diversity_penalty: self.diversity_penalty,
            length_penalty: self.length_penalty,
            ..options
        };
        model.beam_search(prompt, &options, allowed)
    }
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self { beams: 8, length_penalty: -1.0, groups: 1, diversity_penalty: 1.0 }
    }
}

/// Sizes and training of the dual encoders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScorerConfig {
    /// Sizes.
    pub model: ScorerOptions,
    /// Training.
    pub pace: Pace,
    /// Degraded pictures that the quality heads learn from.
    pub quality_pictures: usize,
}

impl Default for ScorerConfig {
    fn default() -> Self {
        Self {
            model: ScorerOptions::default(),
            pace: Pace { steps: 500, batch: 128, ..Pace::default() },
            quality_pictures: 3_072,
        }
    }
}

/// The diffusion model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DiffusionConfig {
    /// Pixels of a picture's side; a multiple of 8.
    pub size: usize,
    /// Noise schedule.
    pub beta: Beta,
    /// Training steps of the schedule.
    pub times: usize,
    /// What the denoiser predicts.
    pub prediction: Prediction,
    /// Sizes.
    pub model: DenoiserOptions,
    /// Training.
    pub pace: Pace,
    /// Sampling.
    pub sample: SampleOptions,
}

impl Default for DiffusionConfig {
    fn default() -> Self {
        Self {
            size: 32,
            beta: Beta::default(),
            times: 1_000,
            prediction: Prediction::default(),
            model: DenoiserOptions::default(),
            pace: Pace { steps: 900, batch: 48, lr: 2e-3, warmup: 0.05, weight_decay: 0.0 },
            sample: SampleOptions::default(),
        }
    }
}

/// The benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BenchConfig {
    /// Held-out concepts whose pictures are generated; 0 = all.
    pub concepts: usize,
    /// Pictures a concept, method and seed.
    pub pictures: usize,
    /// Pictures among which scorer A chooses (`best of`, ours).
    pub best_of: usize,
    /// Resamples of every bootstrap interval.
    pub resamples: usize,
    /// Concepts of the contact sheet.
    pub sheet: usize,
    /// LLM of the baseline that names objects without any training.
    pub llm: String,
}

impl Default for BenchConfig {
    fn default() -> Self {
        let llm = "gguf:smollm2-135m-instruct".into();
        Self { concepts: 0, pictures: 1, best_of: 4, resamples: 2_000, sheet: 40, llm }
    }
}

impl Config {
    /// Seconds: quarter-size models on a quarter of the world.
    pub fn smoke() -> Self {
        let short = |steps: u64, pace: Pace| Pace { steps, batch: 32, ..pace };
        let full = Self::default();
        Self {
            world: WorldOptions { objects: 200, ..full.world },
            plm: PlmOptions { width: 64, pace: short(60, full.plm.pace.clone()), ..full.plm },
            scorer: ScorerConfig {
                model: ScorerOptions { width: 32, blocks: 1, embedding: 32, heads: 4 },
                pace: short(40, full.scorer.pace.clone()),
                quality_pictures: 256,
            },
            diffusion: DiffusionConfig {
                model: DenoiserOptions { width: 64, blocks: 2, heads: 4, components: 24 },
                pace: short(80, full.diffusion.pace.clone()),
                sample: SampleOptions { steps: 8, ..full.diffusion.sample.clone() },
                ..full.diffusion
            },
            refl: ReflOptions {
                stages: vec![
                    Stage { steps: 4, ..Stage::default() },
                    Stage { quality: 1.0, steps: 2, ..Stage::default() },
                ],
                inference_steps: 8,
                first_step: 5,
                batch: 8,
                ..full.refl
            },
            bench: BenchConfig {
                concepts: 8,
                pictures: 1,
                best_of: 2,
                resamples: 200,
                sheet: 6,
                ..full.bench
            },
            ..full
        }
    }

    /// Minutes on two cores.
    pub fn cpu() -> Self {
        let default = Self::default();
        // stronger than ImageReward's, in its steps of the chain and from early ones
        let late = ReflOptions {
            stages: vec![
                Stage { steps: 40, ..Stage::default() },
                Stage { quality: 1.0, steps: 40, ..Stage::default() },
            ],
            lambda: 1.0,
            lr: 2e-3,
            adapted: Adapted::All,
            ..default.refl.clone()
        };
        let early = ReflOptions { first_step: 2, ..late.clone() };
        Self { refl_others: vec![late, early], ..default }
    }

    /// Longer training of the same models; the paper's own models can't be trained on a CPU.
    pub fn paper() -> Self {
        let mut config = Self::cpu();
        config.diffusion.pace.steps *= 8;
        config.scorer.pace.steps *= 4;
        config.plm.pace.steps *= 2;
        config
    }

    /// Values that no rule of serde can refuse.
    ///
    /// # Errors
    /// [`Error::Usage`] with key, value and range.
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, found: String, expected: &str| {
            Err(Error::usage(format!("config key {key}: found {found}, expected {expected}")))
        };
        let size = self.diffusion.size;
        if size == 0 || !size.is_multiple_of(8) || size > 256 {
            return refuse("diffusion.size", size.to_string(), "a multiple of 8 up to 256");
        }
        for (key, pace) in [
            ("plm.pace", &self.plm.pace),
            ("scorer.pace", &self.scorer.pace),
            ("diffusion.pace", &self.diffusion.pace),
        ] {
            if pace.batch < 2 || !pace.batch.is_multiple_of(2) {
                return refuse(&format!("{key}.batch"), pace.batch.to_string(), "an even number");
            }
        }
        let times = |key: &str, steps: usize| match steps {
            steps if steps == 0 || steps > self.diffusion.times => {
                refuse(key, steps.to_string(), "1 to diffusion.times")
            }
            _ => Ok(()),
        };
        times("diffusion.sample.steps", self.diffusion.sample.steps)?;
        let others = self.refl_others.iter().map(|refl| ("refl_others", refl));
        for (key, refl) in std::iter::once(("refl", &self.refl)).chain(others) {
            if refl.batch < 2 || !refl.batch.is_multiple_of(2) {
                return refuse(&format!("{key}.batch"), refl.batch.to_string(), "an even number");
            }
            times(&format!("{key}.inference_steps"), refl.inference_steps)?;
            if refl.backprop_steps == 0 || refl.rank == 0 {
                let keys = format!("{key}.backprop_steps, {key}.rank");
                return refuse(&keys, "0".into(), "at least 1");
            }
            if !(0.0..=1.0).contains(&refl.raw_share) {
                return refuse(&format!("{key}.raw_share"), refl.raw_share.to_string(), "a share");
            }
        }
        if self.ppo.batch < 2 || self.ppo.images == 0 {
            return refuse("ppo.batch, ppo.images", "less".into(), "at least 2 and 1");
        }
        if self.search.groups == 0 || self.search.groups > self.search.beams {
            return refuse("search.groups", self.search.groups.to_string(), "1 to search.beams");
        }
        if self.search.beams == 0 || self.bench.pictures == 0 || self.bench.best_of == 0 {
            return refuse("search.beams, bench.pictures, bench.best_of", "0".into(), "at least 1");
        }
        for (key, share) in [("test", self.world.test), ("validation", self.world.validation)] {
            if !(0.0..0.9).contains(&share) {
                return refuse(&format!("world.{key}"), share.to_string(), "a share below 0.9");
            }
        }
        Ok(())
    }
}
