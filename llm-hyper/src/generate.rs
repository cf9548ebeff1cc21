//! The offline pipeline for new ads: retrieve, let the LLM write, normalise, calibrate, store.

use common::assets::Assets;
use common::{Error, Result};

use crate::artefact::{Artefact, DemoUsed, Source};
use crate::calibrate::Calibration;
use crate::config::{Config, Target};
use crate::data::{Ad, Schema};
use crate::index::Index;
use crate::library::Library;
use crate::model::intercept;
use crate::model::normalise::{WeightScale, median, norm, normalise};
use crate::model::retrieve::Found;
use crate::sources::Sources;
use crate::writer::{Demonstration, Query, Raw, Tally, Writer};

/// The pipeline on one library.
pub struct Generator<'a> {
    /// The library.
    pub library: &'a Library,
    /// The config.
    pub config: &'a Config,
    /// Median trained weight of each feature.
    pub centre: Vec<f64>,
    /// Standard deviation of each feature's trained weight; infinite for a constant one.
    pub spread: Vec<f64>,
    index: Index,
    scale: WeightScale,
    limits: Vec<(f64, f64)>,
}

impl std::fmt::Debug for Generator<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generator").field("ads", &self.library.ads.len()).finish_non_exhaustive()
    }
}

impl<'a> Generator<'a> {
    /// Embeds the library.
    ///
    /// # Errors
    /// Those of the embedder; [`Error::Usage`] for a limit on an unknown feature.
    pub fn new(library: &'a Library, config: &'a Config, assets: &Assets) -> Result<Self> {
        Ok(Self {
            index: Index::new(library, config.retrieval.encoder, assets)?,
            scale: library.scale(),
            centre: library.centre(),
            spread: library.spread(),
            limits: limits(config, &library.schema)?,
            library,
            config,
        })
    }

    /// Eq. 3 with the leak guard: each ad's demonstrations, best first.
    ///
    /// # Errors
    /// Those of the embedder.
    pub fn retrieve(&self, ads: &[Ad]) -> Result<Vec<Vec<Found>>> {
        self.index.retrieve(self.library, ads, self.config.retrieval.k)
    }

    /// What the LLM is asked: demonstrations least similar first.
    pub fn query<'q>(&'q self, ad: &'q Ad, found: &[Found]) -> Query<'q> {
        let demos = found.iter().rev().map(|found| {
            let retired = &self.library.ads[found.index];
            Demonstration {
                ad: &retired.ad,
                weights: retired.weights.clone(),
                special: self.library.special(found.index),
                similarity: found.similarity,
            }
        });
        Query { ad, demos: demos.collect() }
    }

    /// The queries of many ads.
    pub fn queries<'q>(&'q self, ads: &'q [Ad], found: &[Vec<Found>]) -> Vec<Query<'q>> {
        ads.iter().zip(found).map(|(ad, found)| self.query(ad, found)).collect()
    }

    /// p̄ of Eq. 6: the demonstrations' similarity-weighted click rate, or the library's.
    pub fn target_rate(&self, found: &[Found]) -> f64 {
        let rate = |index| self.library.rate_of(index, self.config.intercept.smoothing);
        let near = match self.config.intercept.target {
            Target::Demonstrations => self.library.mean_over(found, rate),
            Target::Library => None,
        };
        near.unwrap_or_else(|| self.library.rate())
    }

    /// Eq. 6 on the library's reference users.
    ///
    /// # Errors
    /// As [`intercept::solve`].
    pub fn bias(&self, weights: &[f64], target: f64) -> Result<f64> {
        intercept::solve(&self.library.reference_logits(weights), target)
    }

    /// Median norm of the demonstrations' trained weights, or of the whole library's without any;
    /// 1 for an empty library.
    fn demonstration_norm(&self, found: &[Found]) -> f64 {
        let norms: Vec<f64> = if found.is_empty() {
            self.library.ads.iter().map(|ad| norm(&ad.weights)).collect()
        } else {
            found.iter().map(|f| norm(&self.library.ads[f.index].weights)).collect()
        };
        if norms.is_empty() { 1.0 } else { median(&norms) }
    }

    /// Raw weights become the served model: Eq. 5, gaps filled from kNN weights, limits, Eq. 6.
    ///
    /// # Errors
    /// As [`intercept::solve`].
    pub fn finish(&self, ad: &Ad, found: &[Found], raw: &Raw, llm: &str) -> Result<Artefact> {
        let knn = self.library.knn_weights(found);
        let written = if raw.values.iter().any(Option::is_some) {
            let wanted = self.demonstration_norm(found);
            normalise(&raw.or_zero(), self.config.normalisation, wanted, &self.scale)
        } else {
            None
        };
        let silent = raw.values.iter().all(Option::is_none);
        let (weights, source) = match (written, knn) {
            (Some(mut weights), knn) => {
                for j in raw.gaps() {
                    weights[j] = knn.as_ref().map_or(self.centre[j], |knn| knn[j]);
                }
                (weights, Source::Llm)
            }
            // All-zero weights are an answer without content: not kNN, but what all ads share.
            (None, Some(knn)) if silent => (knn, Source::Knn),
            (None, _) => (self.centre.clone(), Source::LrCold),
        };
        let filled = if source == Source::Llm { raw.gaps().collect() } else { Vec::new() };
        self.serve(ad, found, raw, llm, Served { weights, source, filled })
    }

    /// The learned blend in place of Eq. 5; `sources` are the ad's weights by [`Sources`]. Without
    /// a complete answer the sources alone are blended.
    ///
    /// # Errors
    /// As [`intercept::solve`].
    pub fn finish_blend(
        &self,
        calibration: &Calibration,
        sources: &[Vec<f64>],
        ad: &Ad,
        found: &[Found],
        raw: &Raw,
        llm: &str,
    ) -> Result<Artefact> {
        let weights = calibration.weights(sources, raw.complete().as_deref(), &self.spread);
        let filled = raw.gaps().collect();
        self.serve(ad, found, raw, llm, Served { weights, source: Source::Blend, filled })
    }

    /// Clipping, limits, Eq. 6, and the artefact.
    fn serve(
        &self,
        ad: &Ad,
        found: &[Found],
        raw: &Raw,
        llm: &str,
        served: Served,
    ) -> Result<Artefact> {
        let Served { mut weights, source, filled } = served;
        for w in &mut weights {
            *w = w.clamp(-self.scale.limit, self.scale.limit);
        }
        if self.config.intercept.match_spread {
            self.match_spread(&mut weights, found);
        }
        for (w, (min, max)) in weights.iter_mut().zip(&self.limits) {
            *w = w.clamp(*min, *max);
        }
        let target_rate = self.target_rate(found);
        let name = |j: usize| self.library.schema.features[j].name.clone();
        Ok(Artefact {
            ad_id: ad.id.clone(),
            ad_text: ad.text(),
            feature_schema_hash: self.library.schema.hash(),
            bias: self.bias(&weights, target_rate)?,
            weights,
            raw: raw.or_zero(),
            demos: found
                .iter()
                .map(|f| DemoUsed {
                    id: self.library.ads[f.index].ad.id.clone(),
                    text: self.library.ads[f.index].ad.text(),
                    similarity: f.similarity,
                })
                .collect(),
            target_rate,
            source,
            filled: filled.into_iter().map(name).collect(),
            llm: llm.to_owned(),
            prompt_hash: raw.prompt_hash.clone(),
            reasoning: raw.reasoning.clone(),
        })
    }

    /// Scales weights so that sd(w · x) over reference users is the demonstrations' median.
    fn match_spread(&self, weights: &mut [f64], found: &[Found]) {
        let spread = |w: &[f64]| common::stats::mean_sd(&self.library.reference_logits(w)).1;
        let theirs: Vec<f64> =
            found.iter().map(|f| spread(&self.library.ads[f.index].weights)).collect();
        let (ours, wanted) = (spread(weights), median(&theirs));
        if ours > 0.0 && ours.is_finite() && wanted > 0.0 && wanted.is_finite() {
            weights.iter_mut().for_each(|w| *w *= wanted / ours);
        }
    }

    /// The whole pipeline for new ads: Eq. 5 on what the LLM writes, or with `calibration` the
    /// blend.
    ///
    /// # Errors
    /// Those of the LLM; [`Error::LlmOutput`] when more than `writer.allowed_fallback` of the
    /// weights had no usable answer; [`Error::Data`] for another library's calibration.
    pub fn generate(
        &self,
        ads: &[Ad],
        writer: &Writer,
        calibration: Option<(&Calibration, &Sources<'_>)>,
    ) -> Result<(Vec<Artefact>, Tally)> {
        let found = self.retrieve(ads)?;
        let cheap = match calibration {
            Some((calibration, sources)) => {
                calibration.check(&self.library.schema, writer.mode())?;
                sources.weights(ads)?
            }
            None => Vec::new(),
        };
        let (raws, tally) = writer.write(&self.queries(ads, &found))?;
        let share = tally.unusable as f64 / tally.weights.max(1) as f64;
        let allowed = self.config.writer.allowed_fallback;
        if share > allowed && !self.config.writer.fallback_on_outage {
            return Err(Error::LlmOutput(format!(
                "{} of {} weights had no usable answer ({:.0} %), at most {:.0} % are allowed; see \
                 the prompts with --dry-run, or raise writer.allowed_fallback",
                tally.unusable,
                tally.weights,
                100.0 * share,
                100.0 * allowed
            )));
        }
        let name = writer.name();
        let artefacts = (0..ads.len()).map(|at| match calibration {
            Some((calibration, _)) => {
                self.finish_blend(calibration, &cheap[at], &ads[at], &found[at], &raws[at], &name)
            }
            None => self.finish(&ads[at], &found[at], &raws[at], &name),
        });
        Ok((artefacts.collect::<Result<_>>()?, tally))
    }
}

/// Weights before clipping and limits.
struct Served {
    weights: Vec<f64>,
    source: Source,
    /// Features without an answer of the LLM.
    filled: Vec<usize>,
}

/// (min, max) per feature.
fn limits(config: &Config, schema: &Schema) -> Result<Vec<(f64, f64)>> {
    let mut limits = vec![(f64::NEG_INFINITY, f64::INFINITY); schema.len()];
    for limit in &config.limits {
        let at = schema.position(&limit.feature).ok_or_else(|| {
            Error::usage(format!(
                "limits: feature {:?} is not in the schema, which has {} features such as {:?}",
                limit.feature,
                schema.len(),
                schema.features[0].name
            ))
        })?;
        limits[at] = (limit.min.unwrap_or(f64::NEG_INFINITY), limit.max.unwrap_or(f64::INFINITY));
    }
    Ok(limits)
}
