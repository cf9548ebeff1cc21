//! The trained models of a bench, kept by what they were trained from.

use common::checkpoint::{Checkpoints, Trained};
use common::lm::{Lm, LmConfig};
use common::optim::Workers;
use common::rng::Seed;
use common::{Error, Result};
use serde_json::json;

use super::Context;
use crate::config::Config;
use crate::prompt::{Prompt, fingerprint};
use crate::stages::{Case, Setting};
use crate::train::{self, History};

/// A trained model.
pub(super) struct Model {
    /// The weights.
    pub lm: Lm,
    /// Seconds that its training took when it was trained.
    pub seconds: f64,
    /// Tokens that went through a training pass.
    pub tokens: f64,
}

/// A training that a bench wants done.
pub(super) struct Job<'a> {
    pub name: &'a str,
    pub seed: u64,
    pub windows: &'a [Prompt],
}

/// Trains or finds models, several at a time.
pub(super) struct Models<'a> {
    config: &'a Config,
    setting: &'a Setting,
    workers: &'a Workers,
    kept: Trained,
    lm: LmConfig,
}

impl<'a> Models<'a> {
    pub(super) fn new(
        config: &'a Config,
        context: &Context,
        setting: &'a Setting,
        workers: &'a Workers,
    ) -> Self {
        let folder = context.assets.options().cache.join("trained").join("cure");
        let lm = setting.lm_config(&config.model, &config.data);
        Self { config, setting, workers, kept: Trained::new(&folder), lm }
    }

    /// The originals, one per seed, and for every case the models retrained without its events; all
    /// in one queue.
    pub(super) fn originals_and_retrained(
        &mut self,
        seeds: &[u64],
        cases: &[Case],
    ) -> Result<(Vec<Model>, Vec<Vec<Model>>)> {
        let windows = self.setting.prompts().of_mask(&self.setting.mask);
        let original = |&seed: &u64| Job { name: "original", seed, windows: &windows };
        let mut jobs: Vec<Job<'_>> = seeds.iter().map(original).collect();
        for case in cases {
            let retrain = |&seed: &u64| Job { name: "retrain", seed, windows: &case.retain };
            jobs.extend(seeds.iter().map(retrain));
        }
        let mut trained = self.train(&jobs)?.into_iter();
        let mut of_seeds = || trained.by_ref().take(seeds.len()).collect::<Vec<_>>();
        Ok((of_seeds(), cases.iter().map(|_| of_seeds()).collect()))
    }

    /// All jobs, one model per thread at a time: the weights do not depend on the threads.
    pub(super) fn train(&mut self, jobs: &[Job<'_>]) -> Result<Vec<Model>> {
        self.workers.map(jobs.len(), |at| {
            let job = &jobs[at];
            let key = json!({
                "version": train::VERSION,
                "model": self.config.model,
                "fit": self.config.fit,
                "positions": self.lm.max_position_embeddings,
                "vocabulary": self.lm.vocab_size,
                "windows": fingerprint(job.windows),
                "seed": job.seed,
            });
            let single = Workers::new(1)?;
            let (tensors, history) = self.kept.get_or_train(job.name, &key, |work| {
                let checkpoints = Checkpoints::open(work)?;
                let fit = &self.config.fit;
                let seed = Seed::new(job.seed);
                let (lm, history) = train::fit(
                    Lm::new(&self.lm, seed)?,
                    job.windows,
                    fit,
                    seed,
                    &single,
                    Some(&checkpoints),
                )?;
                Ok((lm.parameters().tensors(), history))
            })?;
            let history: History = history;
            let lm = Lm::from_tensors(&self.lm, tensors)?;
            let each: usize = job.windows.iter().map(|window| window.ids.len()).sum();
            let tokens = (each * self.config.fit.epochs) as f64;
            Ok::<_, Error>(Model { lm, seconds: history.seconds, tokens })
        })
    }
}
