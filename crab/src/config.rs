//! Configuration: one documented struct. `Default` is the paper's setting where it is known, on a
//! model of the size that a laptop trains (specification §4).

use common::recommend::{BprOptions, Gru4recOptions, ItemKnnOptions, SasrecOptions};
use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::generator::GeneratorOptions;
use crate::model::rebalance::RebalanceOptions;
use crate::tokenizer::{Assignment, Collisions, RqVaeOptions};
use crate::train::{Stage2Options, TrainOptions};

/// Everything that a run depends on, besides seed and input files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// From item texts to semantic IDs.
    pub tokenizer: TokenizerConfig,
    /// The generator.
    pub generator: GeneratorOptions,
    /// Its training.
    pub train: TrainOptions,
    /// Stage 1: the split.
    pub rebalance: RebalanceOptions,
    /// Stage 2: the loss and what trains.
    pub stage2: Stage2Options,
    /// Stage 2: its epochs and rate.
    pub fine_tune: TrainOptions,
    /// Prefixes kept per level when decoding.
    pub beams: usize,
    /// Whether an item of the history may be recommended again (own data).
    pub repeats: bool,
    /// The baselines.
    pub baselines: BaselineConfig,
    /// The benchmark.
    pub bench: BenchConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tokenizer: TokenizerConfig::default(),
            generator: GeneratorOptions::default(),
            train: TrainOptions::default(),
            rebalance: RebalanceOptions::default(),
            stage2: Stage2Options::default(),
            fine_tune: TrainOptions::default().fine_tuned(),
            beams: 20,
            repeats: true,
            baselines: BaselineConfig::default(),
            bench: BenchConfig::default(),
        }
    }
}

/// From items to semantic IDs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokenizerConfig {
    /// Codes per level (paper: 3 × 256 on its base model; 3 × 64 fits data of a few thousand
    /// items). A level with a running number is added where semantic IDs collide.
    pub codes: Vec<usize>,
    /// How items are spread over codes.
    pub assignment: Assignment,
    /// What becomes of items with equal codes.
    pub collisions: Collisions,
    /// What items are compared by.
    pub vectors: VectorSource,
    /// Learn the codes with an RQ-VAE instead of residual k-means.
    pub rqvae: Option<RqVaeOptions>,
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self {
            codes: vec![64; 3],
            assignment: Assignment::Nearest,
            collisions: Collisions::Number,
            vectors: VectorSource::default(),
            rqvae: None,
        }
    }
}

/// What items are compared by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VectorSource {
    /// MiniLM embeddings of the texts, projected onto their main directions.
    #[default]
    Text,
    /// Words of the texts (TF-IDF), projected onto their main directions; needs no model.
    Words,
    /// A random projection of who interacted with what; needs no text and no model.
    Interactions,
}

/// Options of the baselines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BaselineConfig {
    /// Item-based neighbours.
    #[schemars(with = "serde_json::Value")]
    pub item_knn: ItemKnnOptions,
    /// Matrix factorisation.
    #[schemars(with = "serde_json::Value")]
    pub bpr: BprOptions,
    /// SASRec.
    #[schemars(with = "serde_json::Value")]
    pub sasrec: SasrecOptions,
    /// GRU4Rec.
    #[schemars(with = "serde_json::Value")]
    pub gru4rec: Gru4recOptions,
}

/// The benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BenchConfig {
    /// Data sets and the sizes of what is trained on each.
    pub datasets: Vec<BenchDataset>,
    /// Seeds where `--seeds` names none.
    pub seeds: usize,
    /// Strengths α of the popularity-aware reranking that are tried: log p(i) − α ln(1 + freq(i)).
    pub alphas: Vec<f64>,
    /// Shares β of the transition counts that are tried in the mixture with the generator.
    pub mixtures: Vec<f64>,
    /// Exponent of the inverse-popularity weights of RW.
    pub reweighting: f64,
    /// Most relative loss of validation NDCG@10 that the choice of α may cost.
    pub allowed_loss: f64,
}

impl Default for BenchConfig {
    fn default() -> Self {
        Self {
            datasets: vec![BenchDataset::industrial(), BenchDataset::movielens()],
            seeds: 3,
            alphas: vec![0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8],
            mixtures: vec![0.0, 0.1, 0.2, 0.3, 0.5, 0.7],
            reweighting: 0.5,
            allowed_loss: 0.02,
        }
    }
}

/// A data set of the benchmark with the sizes of what is trained on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BenchDataset {
    /// Which.
    pub name: BenchData,
    /// Users taken; 0 = all.
    pub users: usize,
    /// Cases taken; 0 = all.
    pub cases: usize,
    /// From items to semantic IDs.
    pub tokenizer: TokenizerConfig,
    /// Take the semantic IDs that come with the data instead, where there are any.
    pub released_sids: bool,
    /// Also run further tokenizers (RQ-VAE, LETTER) and further settings of CRAB.
    pub extras: bool,
    /// The generator.
    pub generator: GeneratorOptions,
    /// Its training.
    pub train: TrainOptions,
    /// The same budget for all variants of Stage 2.
    pub fine_tune: TrainOptions,
    /// Prefixes kept per level when decoding.
    pub beams: usize,
    /// Baselines.
    pub baselines: BaselineConfig,
}

impl Default for BenchDataset {
    fn default() -> Self {
        Self {
            name: BenchData::default(),
            users: 0,
            cases: 0,
            tokenizer: TokenizerConfig::default(),
            released_sids: false,
            extras: false,
            generator: GeneratorOptions::default(),
            train: TrainOptions::default(),
            fine_tune: TrainOptions::default().fine_tuned(),
            beams: 20,
            baselines: BaselineConfig::default(),
        }
    }
}

/// Data sets of the benchmark.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BenchData {
    /// The paper's Industrial test set.
    #[default]
    Industrial,
    /// MovieLens-100k.
    Movielens,
    /// Amazon Beauty; ids only.
    Beauty,
}

impl BenchDataset {
    fn industrial() -> Self {
        // GRU4Rec's settings for ML-100k do better on the validation cases than its defaults
        let gru4rec = Gru4recOptions::movielens();
        let mut baselines = BaselineConfig { gru4rec, ..BaselineConfig::default() };
        for training in [&mut baselines.sasrec.training, &mut baselines.gru4rec.training] {
            training.max_length = 10;
            training.mask_history = false;
        }
        baselines.sasrec.training.learning_rate = 2e-3;
        baselines.sasrec.dropout = 0.3;
        baselines.bpr.mask_history = false;
        // three levels of 256 codes, as many as the released semantic IDs have
        let tokenizer = TokenizerConfig {
            codes: vec![256; 3],
            collisions: Collisions::Nearest,
            vectors: VectorSource::Words,
            ..TokenizerConfig::default()
        };
        let bound =
            TrainOptions { within_trie: true, predict_first: false, ..TrainOptions::default() };
        Self {
            tokenizer,
            released_sids: true,
            extras: true,
            // the rate ends at 0; a few hundred validation cases choose an epoch worse than that
            train: TrainOptions { epochs: 20, evaluate_every: 0, ..bound },
            fine_tune: TrainOptions { epochs: 3, ..bound.fine_tuned() },
            baselines,
            ..Self::default()
        }
    }

    fn movielens() -> Self {
        let baselines = BaselineConfig {
            sasrec: SasrecOptions::movielens(),
            gru4rec: Gru4recOptions::movielens(),
            ..BaselineConfig::default()
        };
        // titles say little about films, who watched them says more
        let tokenizer = TokenizerConfig {
            collisions: Collisions::Nearest,
            vectors: VectorSource::Interactions,
            ..TokenizerConfig::default()
        };
        let bound =
            TrainOptions { within_trie: true, predict_first: false, ..TrainOptions::default() };
        Self {
            name: BenchData::Movielens,
            baselines,
            tokenizer,
            generator: GeneratorOptions {
                width: 64,
                heads: 2,
                inner: 128,
                history: 20,
                ..GeneratorOptions::default()
            },
            train: TrainOptions { epochs: 4, evaluate_every: 2, ..bound },
            fine_tune: TrainOptions { epochs: 1, ..bound.fine_tuned() },
            beams: 100,
            ..Self::default()
        }
    }
}

impl Config {
    /// Seconds: a part of ml-100k, small models, no text encoder.
    pub fn smoke() -> Self {
        let mut data = BenchDataset::movielens();
        data.users = 150;
        data.tokenizer.codes = vec![16; 3];
        data.tokenizer.vectors = VectorSource::Interactions;
        data.generator = GeneratorOptions {
            width: 32,
            heads: 2,
            inner: 64,
            history: 8,
            ..GeneratorOptions::default()
        };
        data.train = TrainOptions { epochs: 3, evaluate_every: 3, ..data.train };
        data.fine_tune.epochs = 1;
        data.beams = 40;
        let baselines = &mut data.baselines;
        for training in [&mut baselines.sasrec.training, &mut baselines.gru4rec.training] {
            training.epochs = 4;
        }
        baselines.bpr.epochs = 5;
        let mut config = Self::default();
        config.bench.datasets = vec![data];
        config.bench.seeds = 2;
        config
    }

    /// Minutes: Industrial and ml-100k, three seeds.
    pub fn cpu() -> Self {
        Self::default()
    }

    /// As `cpu`, with Beauty; ten seeds. The paper's own model (Qwen2-0.5B) is not built here.
    pub fn paper() -> Self {
        let mut config = Self::default();
        let beauty = BenchDataset {
            name: BenchData::Beauty,
            tokenizer: TokenizerConfig {
                codes: vec![256; 3],
                vectors: VectorSource::Interactions,
                ..TokenizerConfig::default()
            },
            ..BenchDataset::industrial()
        };
        config.bench.datasets.push(beauty);
        config.bench.seeds = 10;
        config
    }

    /// Refuses values that no run can use.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the key.
    pub fn check(&self) -> Result<()> {
        if self.beams == 0 || self.bench.datasets.iter().any(|data| data.beams < 10) {
            return Err(Error::usage("beams: at least 1, and in the bench at least 10"));
        }
        if self.tokenizer.codes.is_empty() || self.tokenizer.codes.contains(&0) {
            return Err(Error::usage("tokenizer.codes: at least one level of at least one code"));
        }
        if self.bench.alphas.first() != Some(&0.0) || self.bench.mixtures.first() != Some(&0.0) {
            return Err(Error::usage("bench.alphas and bench.mixtures: the first must be 0"));
        }
        if !(0.0..1.0).contains(&self.generator.dropout) {
            return Err(Error::usage("generator.dropout: expected a number in [0, 1)"));
        }
        Ok(())
    }
}
