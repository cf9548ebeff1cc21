//! Configuration: one documented struct, `Default` = the paper's values where they are known.
//!
//! The paper's prompts, temperature and iteration cap are not public; such defaults are ours and
//! say so (the crate's README lists them under "Departures from the paper").

use std::path::PathBuf;

use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::train::{Method, Options};
use crate::votes::Duplicates;

/// Everything that a run depends on, besides the seed and the input files.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Columns and rules of input files.
    pub input: InputConfig,
    /// How answers are asked for.
    pub label: LabelConfig,
    /// Who is asked by `label`.
    pub labelers: Vec<LabelerConfig>,
    /// How votes are aggregated by `fit`, `predict` and `eval`.
    pub aggregate: AggregateConfig,
    /// The benchmark.
    pub bench: BenchConfig,
}

/// Columns and rules of input files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InputConfig {
    /// Product file: column of the unique id; empty = the row number.
    pub id: String,
    /// Product file: column of the title; empty = none.
    pub title: String,
    /// Product file: column of the description.
    pub description: String,
    /// Vote file: column of the item.
    pub item: String,
    /// Vote file, long form: column of the worker.
    pub worker: String,
    /// Vote file, long form: column of the label.
    pub vote: String,
    /// Vote file: column of the attribute; a file without it holds one attribute.
    pub attribute: String,
    /// Gold file: column of the true label.
    pub gold: String,
    /// Shape of vote files.
    pub layout: Layout,
    /// Cells that mean "no answer" (exact match after trimming).
    pub missing: Vec<String>,
    /// Several votes of one worker on one item.
    pub duplicates: Duplicates,
    /// Labels outside the attribute schema, when one is given.
    pub unknown_labels: UnknownLabels,
}

impl Default for InputConfig {
    fn default() -> Self {
        Self {
            id: "id".into(),
            title: "title".into(),
            description: "description".into(),
            item: "item".into(),
            worker: "worker".into(),
            vote: "label".into(),
            attribute: "attribute".into(),
            gold: "truth".into(),
            layout: Layout::default(),
            missing: vec![String::new()],
            duplicates: Duplicates::default(),
            unknown_labels: UnknownLabels::default(),
        }
    }
}

/// Shape of a vote file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Long if the worker and label columns are there, else wide.
    #[default]
    Auto,
    /// One row per vote: item, worker, label and, if wanted, attribute.
    Long,
    /// One row per item: item, if wanted attribute, and one column per worker.
    Wide,
}

/// What a label outside the schema's closed set means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownLabels {
    /// An error that names row and column.
    #[default]
    Error,
    /// No answer (W = 0 in the paper's notation); the number is reported.
    Missing,
}

/// How answers are asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LabelConfig {
    /// Longest wait for one request over all its attempts, in seconds; then the endpoint counts as
    /// down (exit code 75).
    pub budget_seconds: u64,
    /// Longest wait for one attempt, in seconds.
    pub attempt_seconds: u64,
    /// Attempts per request.
    pub attempts: usize,
    /// First wait before another attempt, in milliseconds; it doubles with every further one.
    pub backoff_ms: u64,
    /// Largest share of answers of one labeler that may be unusable or failed; above it the run
    /// ends with exit code 5.
    pub allowed_failures: f64,
    /// Longest product text in prompts, in characters; the rest is cut.
    pub max_chars: usize,
}

impl Default for LabelConfig {
    fn default() -> Self {
        Self {
            budget_seconds: 300,
            attempt_seconds: 120,
            attempts: 10,
            backoff_ms: 500,
            allowed_failures: 0.05,
            max_chars: 4_000,
        }
    }
}

/// One labeler ("LLM" of the paper, worker of the crowd literature).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LabelerConfig {
    /// An LLM that scores every label of the closed set: no text to parse, nothing outside it.
    Score(ScoreConfig),
    /// An LLM that answers a prompt; its answer is parsed.
    Prompt(PromptConfig),
    /// MiniLM: the label whose description is nearest to the product text by cosine.
    ZeroShot(ZeroShotConfig),
    /// Rules: the label with the most keyword hits.
    Keywords(KeywordsConfig),
    /// Logistic regression on a labelled train file.
    Logistic(LogisticConfig),
    /// Answers recorded before.
    Recorded(RecordedConfig),
}

impl LabelerConfig {
    /// The worker's name in the vote file.
    pub fn name(&self) -> &str {
        match self {
            Self::Score(c) => &c.name,
            Self::Prompt(c) => &c.name,
            Self::ZeroShot(c) => &c.name,
            Self::Keywords(c) => &c.name,
            Self::Logistic(c) => &c.name,
            Self::Recorded(c) => &c.name,
        }
    }
}

/// An LLM that scores every label.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScoreConfig {
    /// Name of the worker.
    pub name: String,
    /// LLM spec, for example `gguf:smollm2-135m-instruct`.
    pub llm: String,
    /// How the question is put.
    pub template: ScoreTemplate,
    /// Correction for the LLM's preference for some labels.
    pub calibration: Calibration,
    /// Products without labels that batch calibration looks at.
    pub sample: usize,
    /// Mean instead of sum of the label's token log-probabilities.
    pub per_token: bool,
    /// Labelled products shown before every question; the same for all products, so a local LLM
    /// reads them once.
    pub examples: usize,
    /// Product file with a gold column per attribute, from which examples are taken. The bench
    /// sets its own train split.
    pub pool: Option<PathBuf>,
}

impl Default for ScoreConfig {
    fn default() -> Self {
        Self {
            name: "smollm2-135m".into(),
            llm: "gguf:smollm2-135m-instruct".into(),
            template: ScoreTemplate::default(),
            calibration: Calibration::default(),
            sample: 64,
            per_token: false,
            examples: 0,
            pool: None,
        }
    }
}

/// Prompt of a scoring LLM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScoreTemplate {
    /// The product text, then a sentence that each label's phrase completes. Suits base and very
    /// small models.
    #[default]
    Cloze,
    /// A chat turn that names the closed list; each label is a possible reply.
    Choice,
}

/// Correction of label scores (all ours; the paper is silent about scoring).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Calibration {
    /// None.
    None,
    /// Subtract the score under a product without content (Zhao et al. 2021; Holtzman et al. 2021).
    ContentFree,
    /// Subtract half the logarithm of the mean label distribution over `sample` products, whose
    /// labels need not be known (batch calibration, Zhou et al. 2023, at half strength).
    #[default]
    Batch,
}

/// An LLM that answers a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PromptConfig {
    /// Name of the worker.
    pub name: String,
    /// LLM spec, for example `openai:http://localhost:8000/v1#model`.
    pub llm: String,
    /// How the question is put.
    pub style: PromptStyle,
    /// In-context examples per prompt (§3.4 of the specification: 10 in ExtractGPT's prompts).
    pub examples: usize,
    /// Product file with a gold column per attribute, from which examples are chosen.
    pub pool: Option<PathBuf>,
    /// Requests in flight at once.
    pub in_flight: usize,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// Sampling temperature.
    pub temperature: f64,
    /// Ask for JSON by schema where the LLM supports it.
    pub constrain: bool,
}

impl Default for PromptConfig {
    fn default() -> Self {
        Self {
            name: "llm".into(),
            llm: "openai:http://localhost:8000/v1#model".into(),
            style: PromptStyle::default(),
            examples: 0,
            pool: None,
            in_flight: 8,
            max_tokens: 128,
            temperature: 0.0,
            constrain: false,
        }
    }
}

/// The two public prompt structures (ExtractGPT, arXiv 2310.12537) and one question each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PromptStyle {
    /// Names the attributes with their labels; one JSON object answers all of them.
    #[default]
    List,
    /// Gives a JSON schema with descriptions and values; one JSON object answers all of them.
    Schema,
    /// One prompt per attribute, answered by the label alone.
    Question,
}

/// MiniLM zero-shot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ZeroShotConfig {
    /// Name of the worker.
    pub name: String,
}

impl Default for ZeroShotConfig {
    fn default() -> Self {
        Self { name: "minilm-zero-shot".into() }
    }
}

/// Keyword rules.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeywordsConfig {
    /// Name of the worker.
    pub name: String,
    /// Weight of a hit in the title against one in the description.
    pub title_weight: f64,
}

impl Default for KeywordsConfig {
    fn default() -> Self {
        Self { name: "keywords".into(), title_weight: 2.0 }
    }
}

/// Logistic regression.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogisticConfig {
    /// Name of the worker.
    pub name: String,
    /// Product file with a gold column per attribute. The bench sets its own train split.
    pub train: PathBuf,
    /// What the regression sees.
    pub features: Features,
    /// Inverse strength of the L2 penalty (scikit-learn's C).
    pub c: f64,
    /// Words that occur in fewer train texts are left out (TF-IDF).
    pub min_texts: usize,
}

impl Default for LogisticConfig {
    fn default() -> Self {
        Self {
            name: "logistic-regression".into(),
            train: PathBuf::new(),
            features: Features::default(),
            c: 1.0,
            min_texts: 3,
        }
    }
}

/// Features of the logistic regression.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Features {
    /// Unit-length TF-IDF over lower-case words.
    #[default]
    Tfidf,
    /// MiniLM embedding (384 values).
    Minilm,
}

/// Answers recorded before, as a long vote file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RecordedConfig {
    /// Name of the worker, also in the file.
    pub name: String,
    /// Vote file (columns as in `input`).
    pub file: PathBuf,
}

/// How votes are aggregated by `fit`, `predict` and `eval`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AggregateConfig {
    /// The aggregator; the default is the paper's (Algorithm 1).
    pub method: Method,
    /// Its options.
    pub options: Options,
    /// Predictions with a lower confidence are left open (`predict` writes no label); 0 = none.
    pub abstain_below: f64,
    /// Learn one accuracy per worker over all attributes and shrink each attribute's accuracies
    /// towards it (IWMV and one coin; other methods do not use it).
    pub shared: bool,
    /// Scale confidences by one exponent per attribute: fitted on the gold rows if there are any,
    /// else on how well the others' votes predict each vote.
    pub calibrate: bool,
}

impl Default for AggregateConfig {
    fn default() -> Self {
        Self {
            method: Method::Iwmv,
            options: Options::default(),
            abstain_below: 0.0,
            shared: false,
            calibrate: false,
        }
    }
}

/// The benchmark: size of the live part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BenchConfig {
    /// Held-out reviews, one per product, that are labelled live.
    pub reviews: usize,
    /// Labelled reviews for the logistic regression worker: a small gold budget.
    pub train: usize,
    /// Labelled reviews for the logistic regression baseline: a large gold budget.
    pub train_large: usize,
    /// Resamples of every bootstrap interval.
    pub resamples: usize,
    /// LLM workers of the live part; one LLM under two prompts is two workers.
    pub llms: Vec<ScoreConfig>,
}

impl Default for BenchConfig {
    fn default() -> Self {
        Self {
            reviews: 300,
            train: 300,
            train_large: 3_000,
            resamples: 2_000,
            llms: vec![
                live("smollm2-135m", "smollm2-135m-instruct", ScoreTemplate::Cloze),
                live("gemma-3-270m", "gemma-3-270m", ScoreTemplate::Cloze),
                live("qwen2.5-0.5b", "qwen2.5-coder-0.5b-instruct", ScoreTemplate::Choice),
            ],
        }
    }
}

fn live(name: &str, asset: &str, template: ScoreTemplate) -> ScoreConfig {
    ScoreConfig {
        name: name.into(),
        llm: format!("gguf:{asset}"),
        template,
        sample: 32,
        ..ScoreConfig::default()
    }
}

impl Config {
    /// Seconds: for continuous integration.
    pub fn smoke() -> Self {
        let bench = BenchConfig {
            reviews: 20,
            train: 200,
            train_large: 400,
            resamples: 200,
            llms: BenchConfig::default()
                .llms
                .into_iter()
                .take(1)
                .map(|llm| ScoreConfig { sample: 8, ..llm })
                .collect(),
        };
        Self { bench, ..Self::default() }
    }

    /// Minutes on two cores.
    pub fn cpu() -> Self {
        Self::default()
    }

    /// All held-out products.
    pub fn paper() -> Self {
        Self { bench: BenchConfig { reviews: 580, ..BenchConfig::default() }, ..Self::default() }
    }

    /// Values that no rule of serde can refuse.
    ///
    /// # Errors
    /// [`Error::Usage`] with key, value and range.
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, found: String, expected: &str| {
            Err(Error::usage(format!("config key {key}: found {found}, expected {expected}")))
        };
        let allowed = self.label.allowed_failures;
        if !(0.0..=1.0).contains(&allowed) {
            return refuse("label.allowed_failures", allowed.to_string(), "a share from 0 to 1");
        }
        if self.input.item.is_empty() || self.input.description.is_empty() {
            return refuse("input.item, input.description", "\"\"".into(), "a column name");
        }
        let mut names = std::collections::BTreeSet::new();
        for labeler in &self.labelers {
            if labeler.name().trim().is_empty() {
                return refuse("labelers.name", format!("{:?}", labeler.name()), "a name");
            }
            if !names.insert(labeler.name()) {
                return refuse(
                    "labelers.name",
                    format!("{:?} twice", labeler.name()),
                    "unique names",
                );
            }
            match labeler {
                LabelerConfig::Logistic(c) if !(c.c > 0.0 && c.c.is_finite()) => {
                    return refuse("labelers.c", c.c.to_string(), "a number above 0");
                }
                LabelerConfig::Prompt(c) if !(1..=1024).contains(&c.in_flight) => {
                    return refuse("labelers.in_flight", c.in_flight.to_string(), "1 to 1024");
                }
                LabelerConfig::Prompt(c) if c.examples > 0 && c.pool.is_none() => {
                    return refuse(
                        "labelers.pool",
                        "none".into(),
                        "a product file with gold columns, as examples > 0",
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }
}
