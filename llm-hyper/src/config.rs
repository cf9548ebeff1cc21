//! Configuration: one documented struct. The paper gives few settings (k = 5 demonstrations,
//! temperature and batch size "sensitive"); the others are ours, as the README's departures say.

use common::logistic::LogisticOptions;
use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::normalise::Normalisation;

/// Everything that a run depends on, besides the seed and the input files.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Columns of input files.
    pub input: InputConfig,
    /// How retired ads' weights are trained.
    pub library: LibraryConfig,
    /// How demonstrations are found.
    pub retrieval: RetrievalConfig,
    /// How the LLM is asked.
    pub writer: WriterConfig,
    /// How raw weights are normalised (Eq. 5).
    pub normalisation: Normalisation,
    /// How the intercept is calibrated (Eq. 6).
    pub intercept: InterceptConfig,
    /// Business limits on the served weights.
    pub limits: Vec<WeightLimit>,
    /// The benchmark.
    pub bench: BenchConfig,
}

/// Columns of input files. All but ids, titles and clicks are optional in files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InputConfig {
    /// Ad catalogue: unique id.
    pub ad_id: String,
    /// Ad catalogue: headline.
    pub title: String,
    /// Ad catalogue: further text.
    pub description: String,
    /// Ad catalogue: campaign.
    pub campaign: String,
    /// Ad catalogue: when the ad started.
    pub start: String,
    /// Ad catalogue: image file, relative to the catalogue.
    pub image: String,
    /// Impression log: id of the ad.
    pub impression_ad: String,
    /// Impression log and user file: id of the user.
    pub user: String,
    /// Impression log: time.
    pub time: String,
    /// Impression log: whether it was clicked.
    pub clicked: String,
}

impl Default for InputConfig {
    fn default() -> Self {
        Self {
            ad_id: "id".into(),
            title: "title".into(),
            description: "description".into(),
            campaign: "campaign".into(),
            start: "start".into(),
            image: "image".into(),
            impression_ad: "ad".into(),
            user: "user".into(),
            time: "time".into(),
            clicked: "clicked".into(),
        }
    }
}

/// How retired ads' weights are trained (Eq. 2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LibraryConfig {
    /// Inverse penalties 1/λ that cross-validation chooses from; one value skips it.
    pub c: Vec<f64>,
    /// Folds of the cross-validation.
    pub folds: usize,
    /// Ads that take part in the cross-validation; one λ serves all ads.
    pub cv_ads: usize,
    /// An ad needs at least this many clicks, and as many impressions without one.
    pub min_clicks: usize,
    /// Reference users kept for intercept calibration.
    pub reference_users: usize,
}

impl Default for LibraryConfig {
    fn default() -> Self {
        Self {
            c: vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
            folds: 5,
            cv_ads: 25,
            min_clicks: 10,
            reference_users: 10_000,
        }
    }
}

impl LibraryConfig {
    /// Options of one regression.
    pub fn logistic(c: f64) -> LogisticOptions {
        LogisticOptions { c, tolerance: 1e-7, ..LogisticOptions::default() }
    }
}

/// How demonstrations are found (Eq. 3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetrievalConfig {
    /// Demonstrations; 5 in the paper's main setting, 0 is zero-shot.
    pub k: usize,
    /// What embeds the texts.
    pub encoder: Encoder,
}

impl Default for RetrievalConfig {
    fn default() -> Self {
        Self { k: 5, encoder: Encoder::default() }
    }
}

/// What embeds ad texts. The paper uses CLIP on text and image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoder {
    /// TF-IDF over hashed character 3- to 5-grams; needs no model.
    #[default]
    Tfidf,
    /// all-MiniLM-L6-v2.
    Minilm,
}

/// How the LLM is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WriterConfig {
    /// What is asked for.
    pub mode: Mode,
    /// Rating words from low to high (`rating` mode).
    pub words: Vec<String>,
    /// Features of each demonstration that a `rating` or `likelihood` prompt shows per sign.
    pub shown: usize,
    /// Subtract the answers under an ad without content.
    pub content_free: bool,
    /// Features per prompt (`json` mode); the paper calls it sensitive.
    pub batch: usize,
    /// Answers per prompt, of which the median counts (`json` mode).
    pub samples: usize,
    /// Sampling temperature (`json` mode).
    pub temperature: f64,
    /// Longest answer in tokens (`json` mode).
    pub max_tokens: usize,
    /// Largest |weight| that the LLM may write (`json` mode).
    pub range: f64,
    /// Requests in flight at once (endpoints).
    pub in_flight: usize,
    /// Show images to the LLM (endpoints that see).
    pub images: bool,
    /// Longest ad text in prompts, in characters; the rest is cut.
    pub max_chars: usize,
    /// Largest share of feature weights that may come from the fallback; above it the run ends
    /// with exit code 5.
    pub allowed_fallback: f64,
    /// Write fallback weights when the endpoint is down, instead of ending with exit code 75.
    pub fallback_on_outage: bool,
    /// Longest wait for one request over all its attempts, in seconds; then the endpoint counts as
    /// down.
    pub budget_seconds: u64,
    /// Longest wait for one attempt, in seconds.
    pub attempt_seconds: u64,
    /// Attempts per request.
    pub attempts: usize,
    /// First wait before another attempt, in milliseconds; it doubles with every further one.
    pub backoff_ms: u64,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            words: vec!["low".into(), "high".into()],
            shown: 2,
            content_free: true,
            batch: 16,
            samples: 1,
            temperature: 0.0,
            max_tokens: 1024,
            range: 1.0,
            in_flight: 8,
            images: true,
            max_chars: 600,
            allowed_fallback: 0.5,
            fallback_on_outage: false,
            budget_seconds: 300,
            attempt_seconds: 120,
            attempts: 10,
            backoff_ms: 500,
        }
    }
}

/// What the LLM is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// `rating` for local models, `json` for endpoints and recordings of them.
    #[default]
    Auto,
    /// Eq. 4: one rating word per feature, by its probability. Local models only.
    Rating,
    /// How much likelier the ad makes the feature's description as the audience (ours). Local
    /// models only; a third of the tokens of `rating`.
    Likelihood,
    /// JSON with reasoning and weights (the paper's form).
    Json,
}

/// How the intercept is calibrated (Eq. 6).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InterceptConfig {
    /// Which mean click probability is aimed at.
    pub target: Target,
    /// Clicks added to every ad's count before its rate is taken, in proportion to the library's
    /// rate.
    pub smoothing: f64,
    /// Scale the weights so that the spread of logits equals the median of the demonstrations'.
    pub match_spread: bool,
}

impl Default for InterceptConfig {
    fn default() -> Self {
        Self { target: Target::default(), smoothing: 2.0, match_spread: false }
    }
}

/// Which mean click probability the intercept aims at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Similarity-weighted click rate of the demonstrations.
    #[default]
    Demonstrations,
    /// Click rate of the whole library.
    Library,
}

/// A business limit on one feature's weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightLimit {
    /// Name of the feature.
    pub feature: String,
    /// Smallest weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest weight; equal to `min` it pins the weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// The benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BenchConfig {
    /// LLM of the MovieLens and clothing parts; "recorded" = the answers of SmolLM2 to the prompts
    /// of the smoke profile at seed 0.
    pub llm: String,
    /// The MovieLens proxy.
    pub movielens: MovieLensConfig,
    /// Clothing: cold garments.
    pub clothing_active: usize,
    /// Clothing: reviews that a garment needs.
    pub clothing_reviews: usize,
    /// Synthetic ads, a quarter of them cold; 0 leaves the part out.
    pub synth_ads: usize,
    /// Retired ads that are treated as cold to learn blend and calibration, with LLM weights.
    pub blend_ads: usize,
    /// Held-out users that the LLM ranks end to end; 0 leaves the baseline out.
    pub ranked_users: usize,
    /// Ads whose text is edited for counterfactual accuracy.
    pub edited_ads: usize,
    /// Measure `rating` mode on MovieLens too (`likelihood` is measured everywhere).
    pub rating: bool,
    /// Cold garments that the LLM writes JSON with reasons for; 0 leaves the rows out.
    pub json_ads: usize,
    /// Cold films that the controls with prompts of their own are measured on.
    pub control_ads: usize,
    /// Resamples of every bootstrap interval.
    pub resamples: usize,
    /// Repetitions of the warm-up curve per number of impressions.
    pub repeats: usize,
}

impl Default for BenchConfig {
    fn default() -> Self {
        Self {
            llm: "gguf:smollm2-135m-instruct".into(),
            movielens: MovieLensConfig::default(),
            clothing_active: 30,
            clothing_reviews: 50,
            synth_ads: 160,
            blend_ads: 30,
            ranked_users: 8,
            edited_ads: 5,
            rating: true,
            json_ads: 2,
            control_ads: 10,
            resamples: 1000,
            repeats: 2,
        }
    }
}

/// The MovieLens proxy (§6 of the specification).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MovieLensConfig {
    /// What a click is.
    pub label: Label,
    /// Hidden films.
    pub active: usize,
    /// Retired films at most.
    pub retired: usize,
    /// Ratings that a film needs to be retired or hidden.
    pub min_ratings: usize,
    /// Impressions without a click per click.
    pub negatives: usize,
    /// Clicks kept per retired film.
    pub max_clicks: usize,
    /// Share of users that only evaluate.
    pub held_out_users: f64,
}

impl Default for MovieLensConfig {
    fn default() -> Self {
        Self {
            label: Label::Click,
            active: 60,
            retired: 400,
            min_ratings: 100,
            negatives: 4,
            max_clicks: 300,
            held_out_users: 0.2,
        }
    }
}

/// What counts as a click in MovieLens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// Rated, against users of the same week who did not rate the film.
    #[default]
    Click,
    /// Rated 4 or 5, among ratings.
    Like,
}

impl Config {
    /// Seconds, with recorded answers of SmolLM2.
    pub fn smoke() -> Self {
        let bench = BenchConfig {
            llm: "recorded".into(),
            movielens: MovieLensConfig {
                active: 6,
                retired: 60,
                max_clicks: 120,
                ..MovieLensConfig::default()
            },
            clothing_active: 6,
            clothing_reviews: 150,
            synth_ads: 80,
            blend_ads: 6,
            ranked_users: 0,
            edited_ads: 0,
            rating: true,
            // No answers of this form are recorded.
            json_ads: 0,
            control_ads: 4,
            resamples: 100,
            repeats: 1,
        };
        let library = LibraryConfig {
            c: vec![0.03, 0.3],
            cv_ads: 10,
            reference_users: 1_000,
            ..LibraryConfig::default()
        };
        Self { library, bench, ..Self::default() }
    }

    /// Minutes on two cores.
    pub fn cpu() -> Self {
        let library = LibraryConfig { reference_users: 2_000, ..LibraryConfig::default() };
        Self { library, ..Self::default() }
    }

    /// More hidden films and more retired ones treated as cold.
    pub fn paper() -> Self {
        let movielens = MovieLensConfig { active: 120, ..MovieLensConfig::default() };
        let bench = BenchConfig {
            movielens,
            blend_ads: 200,
            ranked_users: 150,
            edited_ads: 60,
            json_ads: 30,
            control_ads: 120,
            ..BenchConfig::default()
        };
        Self { bench, ..Self::default() }
    }

    /// Values that no rule of serde can refuse.
    ///
    /// # Errors
    /// [`Error::Usage`] with key, value and range.
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, found: String, expected: &str| {
            Err(Error::usage(format!("config key {key}: found {found}, expected {expected}")))
        };
        let l = &self.library;
        if l.c.is_empty() || l.c.iter().any(|c| !(*c > 0.0 && c.is_finite())) {
            return refuse("library.c", format!("{:?}", l.c), "numbers above 0");
        }
        if l.folds < 2 {
            return refuse("library.folds", l.folds.to_string(), "at least 2");
        }
        if l.min_clicks == 0 || l.reference_users == 0 {
            return refuse("library.min_clicks, library.reference_users", "0".into(), "at least 1");
        }
        let w = &self.writer;
        if w.words.len() < 2 || w.words.iter().any(|word| word.trim().is_empty()) {
            return refuse("writer.words", format!("{:?}", w.words), "two or more rating words");
        }
        if !(0.0..=1.0).contains(&w.allowed_fallback) {
            return refuse("writer.allowed_fallback", w.allowed_fallback.to_string(), "0 to 1");
        }
        if w.batch == 0 || w.samples == 0 || w.max_tokens == 0 || w.in_flight == 0 {
            return refuse(
                "writer.batch, samples, max_tokens, in_flight",
                "0".into(),
                "at least 1",
            );
        }
        if !(w.range > 0.0 && w.range.is_finite()) {
            return refuse("writer.range", w.range.to_string(), "a number above 0");
        }
        if !(self.intercept.smoothing > 0.0 && self.intercept.smoothing.is_finite()) {
            return refuse(
                "intercept.smoothing",
                self.intercept.smoothing.to_string(),
                "a number above 0, so that no rate is 0 or 1",
            );
        }
        for limit in &self.limits {
            let (min, max) = (limit.min.unwrap_or(f64::MIN), limit.max.unwrap_or(f64::MAX));
            if min.is_nan() || max.is_nan() || min > max {
                return refuse(
                    "limits",
                    format!("{}: min {min}, max {max}", limit.feature),
                    "min at most max",
                );
            }
        }
        let m = &self.bench.movielens;
        if m.active == 0 || m.negatives == 0 || !(m.held_out_users > 0.0 && m.held_out_users < 1.0)
        {
            return refuse(
                "bench.movielens",
                format!(
                    "active {}, negatives {}, held_out_users {}",
                    m.active, m.negatives, m.held_out_users
                ),
                "at least 1, at least 1, a share between 0 and 1",
            );
        }
        Ok(())
    }
}
