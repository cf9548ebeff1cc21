//! The setting of reward feedback learning, chosen on validation concepts.

use std::collections::BTreeMap;

use common::Result;
use common::rng::Seed;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::Config;
use crate::data::Style;
use crate::data::world::{Concept, Split};
use crate::eval::{ConceptTexts, concept_scores};
use crate::model::Denoiser;
use crate::rewrite::Rewriter;
use crate::studio::{Base, ImageModels};
use crate::train::refl::{Adapted, ReflOptions};

/// Pictures of each validation concept.
const ROUNDS: u64 = 2;

/// Seed of the first of these pictures.
const FIRST_SEED: u64 = 77_000;

/// How the settings did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Mean concept score of the untuned denoiser.
    pub untuned: f64,
    /// Mean concept score after each setting.
    pub scores: Vec<f64>,
}

impl Choice {
    /// The setting with the highest score, the first of equals.
    pub fn best(&self) -> usize {
        crate::baselines::top(&self.scores, 1).first().copied().unwrap_or(0)
    }
}

/// A setting in a few words.
pub fn describe(options: &ReflOptions) -> String {
    let layers = if options.adapted == Adapted::All { "all layers" } else { "attention layers" };
    let updates: u64 = options.stages.iter().map(|stage| stage.steps).sum();
    format!(
        "λ {}, {layers}, learning rate {}, gradient at steps {} to {} of {}, {updates} updates",
        options.lambda,
        options.lr,
        options.first_step + 1,
        options.inference_steps,
        options.inference_steps
    )
}

/// The settings that are tried: `refl`, then `refl_others`.
pub fn settings(config: &Config) -> Vec<ReflOptions> {
    std::iter::once(&config.refl).chain(&config.refl_others).cloned().collect()
}

impl Base {
    /// Trains every setting and compares pictures of the language model's prompts for validation
    /// concepts by their concept score (scorer B). Nothing is compared when there is one setting.
    ///
    /// # Errors
    /// Those of the trainings.
    pub fn choose_refl(&self, models: &ImageModels, seed: Seed) -> Result<Choice> {
        let (config, settings) = (&self.config, settings(&self.config));
        if settings.len() == 1 {
            return Ok(Choice { untuned: 0.0, scores: vec![0.0] });
        }
        let key = json!([config.plm, config.diffusion, config.scorer, settings, config.search]);
        let key = json!([self.fingerprint(), key, seed.value()]);
        let (_, choice) = self.store().get("refl-choice", &key, |_| {
            let (model, _) = self.plm(seed, false)?;
            let rewriter = Rewriter::new(&model, &self.features, &self.world, &config.search);
            let concepts: Vec<Concept> = self.world.split(Split::Validation).cloned().collect();
            let prompts = concepts
                .iter()
                .map(|concept| rewriter.first_prompt(&concept.word, Style::Colour))
                .collect::<Result<Vec<_>>>()?;
            let texts =
                ConceptTexts::new(&self.world, &self.features, &models.scorer_b, &concepts)?;
            let score = |denoiser: &Denoiser| {
                let mut scores = Vec::new();
                for round in 0..ROUNDS {
                    let first = FIRST_SEED + 1_000 * round;
                    let seeds: Vec<u64> = (0..prompts.len() as u64).map(|at| first + at).collect();
                    let shown = self.generate(denoiser, &models.codec, &prompts, &seeds)?;
                    scores.extend(concept_scores(&models.scorer_b.embed_images(&shown)?, &texts)?);
                }
                Ok::<_, common::Error>(common::stats::mean_sd(&scores).0)
            };
            let after = |options| score(&self.tuned_with(models, options, seed)?.0);
            let scores = settings.iter().map(after).collect::<Result<Vec<_>>>()?;
            Ok((BTreeMap::new(), Choice { untuned: score(&models.denoiser)?, scores }))
        })?;
        Ok(choice)
    }
}
