//! The offline pipeline for new ads: retrieve, let the LLM write, normalise, calibrate, store.

use common::assets::Assets;
use common::encode::TextEncoder;
use common::{Error, Result};
use ndarray::{Array2, ArrayView1};

use crate::artefact::{Artefact, DemoUsed, Source};
use crate::config::{Config, Encoder, Target};
use crate::data::{Ad, Schema};
use crate::library::Library;
use crate::model::intercept;
use crate::model::normalise::{WeightScale, median, norm, normalise};
use crate::model::residual::Residual;
use crate::model::retrieve::{Tfidf, similarity_weight, top_k};
use crate::writer::{Demonstration, Query, Raw, Tally, Writer};

/// Embeds ad texts as unit rows.
pub enum Embedder {
    /// TF-IDF fitted on the library.
    Tfidf(Tfidf),
    /// MiniLM.
    Minilm(Box<TextEncoder>),
}

impl Embedder {
    /// The embedder of the config, fitted on `texts` where it needs fitting.
    ///
    /// # Errors
    /// As [`TextEncoder::minilm`].
    pub fn new(encoder: Encoder, texts: &[String], assets: &Assets) -> Result<Self> {
        Ok(match encoder {
            Encoder::Tfidf => Self::Tfidf(Tfidf::fit(texts)),
            Encoder::Minilm => Self::Minilm(Box::new(TextEncoder::minilm(assets)?)),
        })
    }

    /// (texts, width) unit rows.
    ///
    /// # Errors
    /// As [`TextEncoder::encode`].
    pub fn embed(&self, texts: &[String]) -> Result<Array2<f64>> {
        match self {
            Self::Tfidf(tfidf) => Ok(tfidf.embed(texts)),
            Self::Minilm(_) if texts.is_empty() => Ok(Array2::zeros((0, 0))),
            Self::Minilm(encoder) => Ok(encoder.encode(texts)?.mapv(f64::from)),
        }
    }
}

/// A retired ad found for a new one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Index in the library.
    pub index: usize,
    /// Cosine similarity.
    pub similarity: f64,
}

/// The pipeline on one library.
pub struct Generator<'a> {
    /// The library.
    pub library: &'a Library,
    /// The config.
    pub config: &'a Config,
    /// (retired ads, width)
    pub embeddings: Array2<f64>,
    embedder: Embedder,
    scale: WeightScale,
    /// Median trained weight of each feature.
    pub centre: Vec<f64>,
    /// Standard deviation of each feature's trained weight; infinite for a constant one.
    pub spread: Vec<f64>,
    limits: Vec<(f64, f64)>,
    residual: Option<Residual>,
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
        let texts: Vec<String> = library.ads.iter().map(|retired| retired.ad.text()).collect();
        let embedder = Embedder::new(config.retrieval.encoder, &texts, assets)?;
        let centre = library.centre();
        let spread = (0..library.schema.len())
            .map(|j| {
                let column: Vec<f64> = library.ads.iter().map(|ad| ad.weights[j]).collect();
                let (_, sd) = common::stats::mean_sd(&column);
                if sd > 1e-9 { sd } else { f64::INFINITY }
            })
            .collect();
        Ok(Self {
            embeddings: embedder.embed(&texts)?,
            embedder,
            scale: library.scale(),
            centre,
            spread,
            limits: limits(config, &library.schema)?,
            residual: None,
            library,
            config,
        })
    }

    /// Serves the library's median moved by what is unusual about the LLM's answers, instead of
    /// Eq. 5.
    ///
    /// # Errors
    /// [`Error::Data`] when the residual was learned on another number of features.
    pub fn with_residual(self, residual: Residual) -> Result<Self> {
        let width = self.library.schema.len();
        if residual.mean.len() != width || residual.sd.len() != width {
            return Err(Error::data(
                format!("a calibration of {} features", residual.mean.len()),
                format!("the library's {width}; calibrate again"),
            ));
        }
        Ok(Self { residual: Some(residual), ..self })
    }

    /// Learns the residual on `count` retired ads, spread evenly over the library, each treated as
    /// cold (it is never among its own demonstrations).
    ///
    /// # Errors
    /// Those of the LLM; [`Error::Data`] with fewer than three usable ads.
    pub fn calibrate(&self, count: usize, writer: &Writer) -> Result<(Residual, Tally)> {
        let all = self.library.ads.len();
        let count = count.min(all);
        let chosen: Vec<usize> = (0..count).map(|at| at * all / count).collect();
        let ads: Vec<Ad> = chosen
            .iter()
            .map(|&at| Ad { start: None, ..self.library.ads[at].ad.clone() })
            .collect();
        let embeddings = self.embed(&ads)?;
        let found: Vec<Vec<Found>> = ads
            .iter()
            .zip(embeddings.rows())
            .map(|(ad, embedding)| self.retrieve(ad, embedding))
            .collect();
        let queries: Vec<Query<'_>> =
            ads.iter().zip(&found).map(|(ad, found)| self.query(ad, found)).collect();
        let (raws, tally) = writer.write(&queries)?;
        let (mut answers, mut special) = (Vec::new(), Vec::new());
        for (&at, raw) in chosen.iter().zip(&raws) {
            if let Some(values) = raw.values.iter().copied().collect::<Option<Vec<f64>>>() {
                answers.push(values);
                special.push(self.special(at));
            }
        }
        Ok((Residual::fit(&answers, &special)?, tally))
    }

    /// Unit rows of the ads' texts.
    ///
    /// # Errors
    /// Those of the embedder.
    pub fn embed(&self, ads: &[Ad]) -> Result<Array2<f64>> {
        self.embedder.embed(&ads.iter().map(Ad::text).collect::<Vec<_>>())
    }

    /// Eq. 3 with the leak guard: the k most similar retired ads, best first; never the ad itself,
    /// one of its campaign, or one that started after it.
    pub fn retrieve(&self, ad: &Ad, embedding: ArrayView1<'_, f64>) -> Vec<Found> {
        let allowed = |index: usize| may_demonstrate(&self.library.ads[index].ad, ad);
        top_k(embedding, &self.embeddings, self.config.retrieval.k, allowed)
            .into_iter()
            .map(|(index, similarity)| Found { index, similarity })
            .collect()
    }

    /// What the LLM is asked: demonstrations least similar first.
    pub fn query<'q>(&'q self, ad: &'q Ad, found: &[Found]) -> Query<'q> {
        let demos = found.iter().rev().map(|found| {
            let retired = &self.library.ads[found.index];
            Demonstration {
                ad: &retired.ad,
                weights: retired.weights.clone(),
                special: self.special(found.index),
                similarity: found.similarity,
            }
        });
        Query { ad, demos: demos.collect() }
    }

    /// What is special about a retired ad: (trained weight − median) / sd of each feature.
    pub fn special(&self, index: usize) -> Vec<f64> {
        let weights = self.library.ads[index].weights.iter();
        weights
            .zip(self.centre.iter().zip(&self.spread))
            .map(|(w, (centre, spread))| (w - centre) / spread)
            .collect()
    }

    /// kNN weights: the similarity-weighted mean of the demonstrations' trained weights; `None`
    /// without demonstrations.
    pub fn knn(&self, found: &[Found]) -> Option<Vec<f64>> {
        if found.is_empty() {
            return None;
        }
        let total: f64 = found.iter().map(|f| similarity_weight(f.similarity)).sum();
        let mut mean = vec![0.0; self.centre.len()];
        for f in found {
            let share = similarity_weight(f.similarity) / total;
            let weights = &self.library.ads[f.index].weights;
            mean.iter_mut().zip(weights).for_each(|(mean, w)| *mean += share * w);
        }
        Some(mean)
    }

    /// p̄ of Eq. 6: the demonstrations' similarity-weighted click rate, or the library's.
    pub fn target_rate(&self, found: &[Found]) -> f64 {
        let smoothing = self.config.intercept.smoothing;
        match self.config.intercept.target {
            Target::Demonstrations if !found.is_empty() => {
                let total: f64 = found.iter().map(|f| similarity_weight(f.similarity)).sum();
                let rate = |f: &Found| {
                    similarity_weight(f.similarity) / total
                        * self.library.rate_of(f.index, smoothing)
                };
                found.iter().map(rate).sum()
            }
            _ => self.library.rate(),
        }
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

    /// Raw weights become the served model: gaps filled from kNN weights, Eq. 5, limits, Eq. 6.
    ///
    /// # Errors
    /// As [`intercept::solve`].
    pub fn finish(&self, ad: &Ad, found: &[Found], raw: &Raw, llm: &str) -> Result<Artefact> {
        let knn = self.knn(found);
        let usable = raw.values.iter().flatten().count();
        let mut filled = Vec::new();
        let wanted = self.demonstration_norm(found);
        let normalised = if usable == 0 {
            None
        } else {
            let values: Vec<f64> = raw.values.iter().map(|v| v.unwrap_or(0.0)).collect();
            match &self.residual {
                Some(residual) => Some(residual.weights(&values, &self.centre, &self.spread)),
                None => normalise(&values, self.config.normalisation, wanted, &self.scale),
            }
        };
        let (mut weights, source) = match (normalised, &knn) {
            (Some(mut weights), _) => {
                for (j, value) in raw.values.iter().enumerate() {
                    if value.is_none() {
                        filled.push(self.library.schema.features[j].name.clone());
                        weights[j] = knn.as_ref().map_or(self.centre[j], |knn| knn[j]);
                    }
                }
                (weights, Source::Llm)
            }
            // The LLM said nothing; all-zero weights are an answer without content.
            (None, Some(knn)) if usable == 0 => (knn.clone(), Source::Knn),
            (None, _) => (self.centre.clone(), Source::LrCold),
        };
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
        Ok(Artefact {
            ad_id: ad.id.clone(),
            ad_text: ad.text(),
            feature_schema_hash: self.library.schema.hash(),
            bias: self.bias(&weights, target_rate)?,
            weights,
            raw: raw.values.iter().map(|v| v.unwrap_or(0.0)).collect(),
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
            filled,
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

    /// The whole pipeline for new ads.
    ///
    /// # Errors
    /// Those of the LLM; [`Error::LlmOutput`] when more than `writer.allowed_fallback` of the
    /// weights had no usable answer.
    pub fn generate(&self, ads: &[Ad], writer: &Writer) -> Result<(Vec<Artefact>, Tally)> {
        let embeddings = self.embed(ads)?;
        let found: Vec<Vec<Found>> = ads
            .iter()
            .zip(embeddings.rows())
            .map(|(ad, embedding)| self.retrieve(ad, embedding))
            .collect();
        let queries: Vec<Query<'_>> =
            ads.iter().zip(&found).map(|(ad, found)| self.query(ad, found)).collect();
        let (raws, tally) = writer.write(&queries)?;
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
        let artefacts = ads
            .iter()
            .zip(&found)
            .zip(&raws)
            .map(|((ad, found), raw)| self.finish(ad, found, raw, &writer.name()))
            .collect::<Result<_>>()?;
        Ok((artefacts, tally))
    }
}

/// The leak guard of Eq. 3.
pub fn may_demonstrate(retired: &Ad, new: &Ad) -> bool {
    let same_campaign = retired.campaign.is_some() && retired.campaign == new.campaign;
    let later = matches!((retired.start, new.start), (Some(retired), Some(new)) if retired > new);
    retired.id != new.id && !same_campaign && !later
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
