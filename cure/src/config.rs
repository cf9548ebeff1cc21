//! Configuration. None of CURE's own values is public: every default here is ours, and the crate's
//! README lists them under "Departures from the paper".

use common::nn::LoraOptions;
use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::Request;
use crate::model::circuit::Selection;
use crate::model::groups::GroupRule;
use crate::model::losses::ForgetLoss;
use crate::pairs::Corruption;

/// Everything that a run depends on, besides the seed and the input files.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where judgements come from and how they are split.
    pub data: DataConfig,
    /// Sizes of the recommender.
    pub model: ModelConfig,
    /// Training from scratch.
    pub fit: FitConfig,
    /// Prompt pairs and circuits.
    pub circuit: CircuitConfig,
    /// Groups of modules.
    pub groups: GroupsConfig,
    /// Unlearning.
    pub unlearn: UnlearnConfig,
    /// The benchmark.
    pub bench: BenchConfig,
}

/// Where judgements come from and how they are split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Own tables: a `rating` from here upwards is a like.
    pub threshold: f64,
    /// Users drawn from the data; 0 = all.
    pub users: usize,
    /// Share of the users held out whole: the never-seen users that unlearning is held against.
    pub held_out: f64,
    /// Most history items before the target (K).
    pub history: usize,
    /// Word tokens a title; 0 = none.
    pub title_tokens: usize,
    /// A token for each item.
    pub item_tokens: bool,
    /// A token for each user with training events.
    pub user_tokens: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            threshold: 4.0,
            users: 0,
            held_out: 0.15,
            history: 40,
            title_tokens: 0,
            item_tokens: true,
            user_tokens: true,
        }
    }
}

/// Sizes of `rec-tiny`, a GPT-2-shaped decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Layers.
    pub layers: usize,
    /// Heads a layer.
    pub heads: usize,
    /// Width.
    pub width: usize,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self { layers: 2, heads: 4, width: 64 }
    }
}

/// Training from scratch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FitConfig {
    /// Passes over the training windows.
    pub epochs: usize,
    /// Windows a step.
    pub batch: usize,
    /// Highest learning rate; it falls linearly to 5 % of itself after a short rise.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Share of training windows whose user is hidden: what the model knows of unknown users.
    pub unknown: f64,
    /// Scale of the likes of users and items in their first embeddings, see
    /// [`crate::train::warm`]; 0 = none. Without effect on adapters.
    pub warm: f64,
    /// Low-rank adapters instead of all weights: for large models that are given.
    pub lora: Option<Lora>,
}

impl Default for FitConfig {
    fn default() -> Self {
        Self {
            epochs: 3,
            batch: 32,
            lr: 2e-3,
            weight_decay: 0.1,
            unknown: 0.15,
            warm: 0.2,
            lora: None,
        }
    }
}

/// Prompt pairs and circuits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CircuitConfig {
    /// How clean prompts are corrupted.
    pub corruption: Corruption,
    /// Share of the history that is exchanged (ρ).
    pub share: f64,
    /// Restart probability of the random walk (α).
    pub restart: f64,
    /// History items of a pair's prompts; all pairs are of one length.
    pub history: usize,
    /// Pairs of the forget and of the retain set each, before those without effect are rejected.
    pub pairs: usize,
    /// Steps of EAP-IG (S); 0 = plain EAP.
    pub steps: usize,
    /// How edges are chosen.
    pub selection: Selection,
    /// Faithfulness that a circuit must reach.
    pub faithfulness: f64,
}

impl Default for CircuitConfig {
    fn default() -> Self {
        Self {
            corruption: Corruption::default(),
            share: 0.5,
            restart: 0.15,
            history: 10,
            pairs: 64,
            steps: 5,
            selection: Selection::default(),
            faithfulness: 0.85,
        }
    }
}

/// Groups of modules.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GroupsConfig {
    /// How contributions become groups.
    pub rule: GroupRule,
    /// Weight of the structural against the gradient contribution (λ_s).
    pub lambda: f64,
    /// Half width of the shared band of the ratio rule (δ).
    pub delta: f64,
    /// Share of modules with the least contribution that stay frozen (ε).
    pub frozen: f64,
}

impl Default for GroupsConfig {
    fn default() -> Self {
        Self { rule: GroupRule::default(), lambda: 0.5, delta: 0.1, frozen: 0.2 }
    }
}

/// Order of the groups' updates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// All groups move in every step.
    #[default]
    Simultaneous,
    /// Forget-specific, retain-specific and shared modules move in turn, a step each.
    Blockwise,
}

/// Unlearning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UnlearnConfig {
    /// What is minimised on the forget set.
    pub loss: ForgetLoss,
    /// Steps at most (T).
    pub steps: usize,
    /// Windows of the forget set and of the retain set a step.
    pub batch: usize,
    /// Learning rate of AdamW on the combined gradient.
    pub lr: f64,
    /// Weight of the KL to the original in the retain loss (μ).
    pub mu: f64,
    /// Weight of the forget gradient where both count (w).
    pub weight: f64,
    /// Sharpness of NPO (β).
    pub beta: f64,
    /// Order of the groups' updates.
    pub order: Order,
    /// Steps between looks at the stop rule; 0 = never stop early.
    pub check_every: usize,
    /// Steps between new extractions of circuits and groups; 0 = once, at the start.
    pub reextract: usize,
    /// Low-rank adapters instead of full weights.
    pub lora: Option<Lora>,
}

/// Low-rank adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
}

impl Default for Lora {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0 }
    }
}

impl Lora {
    /// Adapters on all linear layers of the blocks.
    pub fn options(&self) -> LoraOptions {
        let targets = [
            "c_attn",
            "c_proj",
            "c_fc",
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ];
        LoraOptions {
            rank: self.rank,
            alpha: self.alpha,
            targets: targets.map(str::to_owned).to_vec(),
        }
    }
}

impl Default for UnlearnConfig {
    fn default() -> Self {
        Self {
            loss: ForgetLoss::default(),
            steps: 30,
            batch: 32,
            lr: 1e-3,
            mu: 1.0,
            weight: 0.5,
            beta: 0.1,
            order: Order::default(),
            check_every: 5,
            reextract: 0,
            lora: None,
        }
    }
}

/// The benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BenchConfig {
    /// Deletion requests; the first gets every method, the others a short list.
    pub requests: Vec<Request>,
    /// Learning rates that every unlearner is tuned over, on the first seed.
    pub lrs: Vec<f64>,
    /// Most test records of the evaluation.
    pub test_records: usize,
    /// Steps of the relearning test.
    pub relearn_steps: usize,
    /// Resamples of bootstrap intervals.
    pub resamples: usize,
    /// Pairs on which the exact effect of every edge is measured; 0 = none.
    pub exact_pairs: usize,
}

impl Default for BenchConfig {
    fn default() -> Self {
        let users = |share| Request::UserShare { share };
        Self {
            requests: vec![users(0.2), users(0.05), users(0.01)],
            lrs: vec![1e-4, 5e-4, 2e-3],
            test_records: 10_000,
            relearn_steps: 50,
            resamples: 1_000,
            exact_pairs: 32,
        }
    }
}

impl Config {
    /// Seconds: for continuous integration.
    pub fn smoke() -> Self {
        Self {
            data: DataConfig { users: 120, ..DataConfig::default() },
            model: ModelConfig { layers: 1, heads: 2, width: 32 },
            fit: FitConfig { epochs: 6, batch: 16, lr: 5e-3, ..FitConfig::default() },
            circuit: CircuitConfig { pairs: 16, steps: 2, ..CircuitConfig::default() },
            unlearn: UnlearnConfig { steps: 10, batch: 16, ..UnlearnConfig::default() },
            bench: BenchConfig {
                requests: vec![Request::UserShare { share: 0.2 }],
                lrs: vec![1e-3],
                test_records: 400,
                relearn_steps: 5,
                resamples: 200,
                exact_pairs: 8,
            },
            ..Self::default()
        }
    }

    /// Minutes on two cores. Every unlearner, its circuits included, stays within a tenth of the
    /// tokens that retraining takes.
    pub fn cpu() -> Self {
        Self {
            circuit: CircuitConfig { pairs: 16, ..CircuitConfig::default() },
            unlearn: UnlearnConfig {
                steps: 6,
                batch: 16,
                check_every: 2,
                ..UnlearnConfig::default()
            },
            ..Self::default()
        }
    }

    /// A larger model with more scenarios; the paper's own sizes (GPT-2 Large, LLaMA-2-7B) need a GPU.
    pub fn paper() -> Self {
        let model = ModelConfig { layers: 4, heads: 4, width: 128 };
        let mut config = Self { model, ..Self::default() };
        config.unlearn.steps = 300;
        config.bench.requests.extend([
            Request::Interactions { share: 0.05 },
            Request::Topic { topic: "Film-Noir".into() },
        ]);
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
        let share = |key: &str, value: f64| {
            if (0.0..=1.0).contains(&value) {
                return Ok(());
            }
            refuse(key, value.to_string(), "a share from 0 to 1")
        };
        share("data.held_out", self.data.held_out)?;
        share("fit.unknown", self.fit.unknown)?;
        share("circuit.share", self.circuit.share)?;
        share("circuit.faithfulness", self.circuit.faithfulness)?;
        share("groups.lambda", self.groups.lambda)?;
        share("groups.frozen", self.groups.frozen)?;
        share("unlearn.weight", self.unlearn.weight)?;
        let counts = [
            ("data.history", self.data.history),
            ("circuit.history", self.circuit.history),
            ("model.layers", self.model.layers),
            ("model.heads", self.model.heads),
            ("model.width", self.model.width),
            ("fit.epochs", self.fit.epochs),
            ("fit.batch", self.fit.batch),
            ("circuit.pairs", self.circuit.pairs),
            ("unlearn.batch", self.unlearn.batch),
        ];
        for (key, value) in counts {
            if value == 0 {
                return refuse(key, "0".into(), "at least 1");
            }
        }
        if self.data.title_tokens == 0 && !self.data.item_tokens {
            return refuse("data.title_tokens", "0".into(), "at least 1 without data.item_tokens");
        }
        let rates = [("fit.lr", self.fit.lr), ("unlearn.lr", self.unlearn.lr)];
        let rates = rates.into_iter().chain(self.bench.lrs.iter().map(|&lr| ("bench.lrs", lr)));
        for (key, value) in rates {
            if !(value > 0.0 && value.is_finite()) {
                return refuse(key, value.to_string(), "a number above 0");
            }
        }
        if self.bench.requests.is_empty() || self.bench.lrs.is_empty() {
            return refuse("bench.requests, bench.lrs", "[]".into(), "at least one of each");
        }
        Ok(())
    }
}
