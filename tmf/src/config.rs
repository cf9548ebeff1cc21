//! Configuration. Values of LLaRA's recipe, which the paper builds on, are named where they differ.

use common::cli::Profile;
use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::encoders::graph::LightGcnOptions;
use crate::encoders::mbht::MbhtOptions;
use crate::model::{CmaScope, FusionOptions, LmOptions, Used};
use crate::prompt::{Answer, PromptOptions};
use crate::train::{Curriculum, StageOptions, TrainOptions};

/// All options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Prompts.
    pub prompt: PromptOptions,
    /// BPE merges learnt from the titles.
    pub vocabulary: VocabularyOptions,
    /// The language model (paper: Llama2-7B with LoRA).
    pub lm: LmOptions,
    /// Modalities that are used.
    pub modalities: ModalityOptions,
    /// Adapters, CMA and AMSA.
    pub fusion: FusionOptions,
    /// Which graph encoder gives items their graph vectors.
    pub graph_encoder: GraphEncoder,
    /// LightGCN, which also retrieves candidates.
    pub graph: LightGcnOptions,
    /// MBHT.
    pub mbht: MbhtOptions,
    /// Training.
    pub train: TrainOptions,
    /// Candidates and their ranking.
    pub rank: RankOptions,
    /// The user's own tables.
    pub input: InputOptions,
    /// Whether trained weights that come with the crate are taken; they are for the benchmark's main
    /// models and fit no other data or options.
    pub bundled: bool,
    /// Size of `bench`.
    pub bench: BenchOptions,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            prompt: PromptOptions::default(),
            vocabulary: VocabularyOptions::default(),
            lm: LmOptions::default(),
            modalities: ModalityOptions::default(),
            fusion: FusionOptions::default(),
            graph_encoder: GraphEncoder::default(),
            graph: LightGcnOptions::default(),
            mbht: MbhtOptions::default(),
            train: TrainOptions::default(),
            rank: RankOptions::default(),
            input: InputOptions::default(),
            bundled: true,
            bench: BenchOptions::default(),
        }
    }
}

/// Graph encoders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GraphEncoder {
    /// LightGCN per behaviour, with the knowledge graph.
    #[default]
    LightGcn,
    /// Multi-behaviour hypergraph transformer.
    Mbht,
}

/// The vocabulary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VocabularyOptions {
    /// BPE merges beyond the 256 bytes.
    pub merges: usize,
}

impl Default for VocabularyOptions {
    fn default() -> Self {
        Self { merges: 1500 }
    }
}

/// Which modalities the model may use, where items have them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModalityOptions {
    /// Pictures.
    pub image: bool,
    /// Text embeddings; titles stay in the prompt.
    pub text: bool,
    /// Graph embeddings.
    pub graph: bool,
}

impl Default for ModalityOptions {
    fn default() -> Self {
        Self { image: true, text: true, graph: true }
    }
}

impl ModalityOptions {
    /// In the order of the model.
    pub fn used(&self) -> Used {
        [self.image, self.text, self.graph]
    }
}

/// Ranking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RankOptions {
    /// Candidates of a question, the positive included (LLaRA: 20).
    pub candidates: usize,
    /// Whether the prompt lists the candidates (LLaRA: yes). Either way they are ranked by the
    /// likelihood of their titles.
    pub listed: bool,
    /// Per token instead of in sum.
    pub mean: bool,
    /// Items the graph model retrieves for a full ranking, which the LM orders anew.
    pub retrieved: usize,
    /// Longest generated answer, in tokens (LLaRA: 64).
    pub answer_tokens: usize,
}

impl Default for RankOptions {
    fn default() -> Self {
        Self { candidates: 20, listed: false, mean: false, retrieved: 50, answer_tokens: 24 }
    }
}

/// Names of the columns of a user's tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InputOptions {
    /// Events: user id.
    pub user: String,
    /// Events and items: item id.
    pub item: String,
    /// Events: behaviour.
    pub behaviour: String,
    /// Events: time.
    pub time: String,
    /// Items: title.
    pub title: String,
    /// Items: text for the text encoder; absent = the title.
    pub text: String,
    /// Items: path of a picture, relative to the items file; the column may be absent.
    pub image: String,
    /// CLIP checkpoint that encodes the pictures, `hf:OWNER/NAME[@REVISION]` or a folder; empty =
    /// EfficientNet-Lite0.
    pub clip: String,
    /// Behaviours in the order of their tokens; empty = those of the events, sorted.
    pub behaviours: Vec<String>,
    /// Behaviour to predict; empty = the next item whatever its behaviour.
    pub target: String,
}

impl Default for InputOptions {
    fn default() -> Self {
        Self {
            user: "user".into(),
            item: "item".into(),
            behaviour: "behaviour".into(),
            time: "time".into(),
            title: "title".into(),
            text: "text".into(),
            image: "image".into(),
            clip: String::new(),
            behaviours: Vec::new(),
            target: String::new(),
        }
    }
}

/// Size of the benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BenchOptions {
    /// Users of ML-100k; 0 = all.
    pub users: usize,
    /// Names of the ablations and LM baselines that are trained; the others get a "not run" row.
    pub variants: Vec<String>,
    /// Fusion steps of the ablations on ML-100k, and of the whole model that they are held against.
    pub variant_steps: usize,
    /// Most epochs of BPR, GRU4Rec and SASRec; they stop early on the validation events.
    pub baseline_epochs: usize,
    /// Warm-up steps of the models that answer by title; their fusion has a third of them.
    pub title_steps: usize,
    /// Steps of the synthetic catalogues' models.
    pub synthetic_steps: usize,
    /// Rows of their steps.
    pub synthetic_batch: usize,
    /// Their peak learning rate.
    pub synthetic_rate: f64,
    /// Users a synthetic catalogue is tested on; 0 leaves the catalogues out.
    pub synthetic_users: usize,
    /// Resamples of the bootstrap.
    pub resamples: usize,
}

/// Ablations and models that answer by title.
pub const VARIANTS: [&str; 12] = [
    "without modalities",
    "without text embedding",
    "without graph",
    "without CMA",
    "without AMSA",
    "without behaviour tokens",
    "without curriculum",
    "without warm-up",
    "without own embeddings of item tokens",
    "text-only LM",
    "LLaRA-style",
    "TMF, titles as answers",
];

impl BenchOptions {
    /// Whether a variant is trained.
    pub fn trains(&self, name: &str) -> bool {
        self.variants.iter().any(|variant| variant == name)
    }
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            users: 0,
            variants: VARIANTS
                .into_iter()
                .filter(|&name| name != "without own embeddings of item tokens")
                .map(str::to_owned)
                .collect(),
            variant_steps: 300,
            baseline_epochs: 40,
            title_steps: 300,
            synthetic_steps: 1000,
            synthetic_batch: 32,
            synthetic_rate: 3e-3,
            synthetic_users: 400,
            resamples: 2000,
        }
    }
}

impl Config {
    /// The configuration of a profile.
    pub fn of(profile: Profile) -> Self {
        match profile {
            Profile::Smoke => Self::smoke(),
            Profile::Cpu => Self::cpu(),
            Profile::Paper => Self::paper(),
        }
    }

    /// Minutes on two cores.
    pub fn cpu() -> Self {
        Self::default()
    }

    /// Seconds.
    pub fn smoke() -> Self {
        let lm = LmOptions { hidden: 32, inner: 64, ..LmOptions::default() };
        let mut config = Self { lm, ..Self::default() };
        config.fusion.width = 16;
        config.prompt.history = 10;
        config.graph.steps = 5;
        config.graph.width = 16;
        config.mbht = MbhtOptions { width: 16, layers: 1, steps: 5, batch: 8, ..config.mbht };
        config.train.warm_up = StageOptions { steps: 10, batch: 8, ..StageOptions::default() };
        config.train.fusion = StageOptions { steps: 10, batch: 8, ..config.train.fusion };
        config.rank.retrieved = 20;
        config.bench = BenchOptions {
            users: 60,
            variants: Vec::new(),
            baseline_epochs: 2,
            title_steps: 6,
            synthetic_steps: 10,
            synthetic_users: 40,
            resamples: 200,
            ..BenchOptions::default()
        };
        config
    }

    /// LLaRA's sizes where they make sense for a model that is trained from scratch: wider, deeper
    /// and longer than `cpu`. The paper's Llama2-7B with LoRA is not run here.
    pub fn paper() -> Self {
        let lm = LmOptions { hidden: 256, inner: 768, layers: 6, heads: 8, ..LmOptions::default() };
        let mut config = Self { lm, ..Self::default() };
        config.fusion.width = 256;
        config.fusion.heads = 4;
        config.prompt.history = 50;
        config.train.warm_up.steps = 4000;
        config.train.fusion.steps = 3000;
        config.rank.retrieved = 200;
        config
    }

    /// Refuses what can't work.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the key.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("prompt.history", self.prompt.history),
            ("prompt.title_tokens", self.prompt.title_tokens),
            ("lm.hidden", self.lm.hidden),
            ("lm.inner", self.lm.inner),
            ("lm.layers", self.lm.layers),
            ("lm.heads", self.lm.heads),
            ("fusion.width", self.fusion.width),
            ("fusion.heads", self.fusion.heads),
            ("mbht.batch", self.mbht.batch),
            ("graph.width", self.graph.width),
            ("graph.batch", self.graph.batch),
            ("train.warm_up.batch", self.train.warm_up.batch),
            ("train.fusion.batch", self.train.fusion.batch),
            ("train.slices", self.train.slices),
            ("rank.retrieved", self.rank.retrieved),
            ("rank.answer_tokens", self.rank.answer_tokens),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(Error::usage(format!("{key} = 0; use at least 1")));
            }
        }
        if self.rank.candidates < 2 {
            return Err(Error::usage(format!(
                "rank.candidates = {}; use at least 2",
                self.rank.candidates
            )));
        }
        if !self.lm.hidden.is_multiple_of(2 * self.lm.heads) {
            return Err(Error::usage(format!(
                "lm.hidden = {} is not an even multiple of lm.heads = {}",
                self.lm.hidden, self.lm.heads
            )));
        }
        if !self.fusion.width.is_multiple_of(self.fusion.heads) {
            return Err(Error::usage(format!(
                "fusion.heads = {} does not divide fusion.width = {}",
                self.fusion.heads, self.fusion.width
            )));
        }
        if self.train.learn_history && !self.fusion.causal {
            return Err(Error::usage(
                "train.learn_history = true with fusion.causal = false would show the model what it \
                 is to predict; change one of them",
            ));
        }
        if self.prompt.answer == Answer::Title && !self.prompt.titles {
            return Err(Error::usage(
                "prompt.answer = title with prompt.titles = false would show the model no title to \
                 learn from; set prompt.titles = true",
            ));
        }
        let tokens_alone =
            self.train.warm_up.steps > 0 || self.train.curriculum != Curriculum::None;
        if self.prompt.answer == Answer::Item && !self.lm.item_tokens && tokens_alone {
            return Err(Error::usage(
                "prompt.answer = item with lm.item_tokens = false leaves a level of tokens only with \
                 nothing to answer by; set train.warm_up.steps = 0 and train.curriculum = none",
            ));
        }
        let shares = [
            ("dropout", self.train.dropout),
            ("fusion_dropout", self.train.fusion_dropout),
            ("hidden_tokens", self.train.hidden_tokens),
        ];
        for (key, share) in shares {
            if !(0.0..1.0).contains(&share) {
                return Err(Error::usage(format!(
                    "train.{key} = {share}; use a share from 0 to below 1"
                )));
            }
        }
        if !(self.lm.initial.is_finite() && self.lm.initial > 0.0) {
            let found = self.lm.initial;
            return Err(Error::usage(format!("lm.initial = {found}; use a positive number")));
        }
        for (key, stage) in [("warm_up", &self.train.warm_up), ("fusion", &self.train.fusion)] {
            if !(stage.learning_rate.is_finite() && stage.learning_rate > 0.0) {
                return Err(Error::usage(format!(
                    "train.{key}.learning_rate = {}; use a positive number",
                    stage.learning_rate
                )));
            }
            if !(0.0..=1.0).contains(&stage.listed) {
                return Err(Error::usage(format!(
                    "train.{key}.listed = {}; use a share from 0 to 1",
                    stage.listed
                )));
            }
        }
        Ok(())
    }

    /// Longest row: instruction, history, candidates, answer.
    pub fn positions(&self) -> usize {
        let title = self.prompt.title_tokens + 3;
        let event = if self.prompt.titles { title } else { 3 };
        64 + event * self.prompt.history + title * (self.rank.candidates + 1)
    }

    /// Scope of CMA.
    pub fn scope(&self) -> CmaScope {
        self.fusion.cma
    }
}
