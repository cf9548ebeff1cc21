//! What CURE is held against: recommenders without a language model, gradient-based unlearners,
//! sharded training, and the controls that would expose a placebo.

use common::logistic::{LogisticOptions, LogisticRegression};
use common::report::Role;
use common::rng::Stream;
use common::{Error, Result};
use ndarray::Array2;

use crate::data::{Interactions, Split};
use crate::model::losses::ForgetLoss;
use crate::model::update::Rule;

/// Smoothed share of likes of every item in the training events: `(likes + 10 · share) / (n + 10)`
/// with the overall share.
pub fn item_means(data: &Interactions, mask: &[Vec<bool>]) -> Vec<f64> {
    const PRIOR: f64 = 10.0;
    let mut counts = vec![[0.0f64; 2]; data.items.len()];
    for (events, kept) in data.histories.iter().zip(mask) {
        for (event, _) in events.iter().zip(kept).filter(|(_, kept)| **kept) {
            counts[event.item as usize][0] += 1.0;
            counts[event.item as usize][1] += f64::from(u8::from(event.liked));
        }
    }
    let all = counts.iter().fold([0.0; 2], |a, c| [a[0] + c[0], a[1] + c[1]]);
    let share = all[1] / f64::max(all[0], 1.0);
    counts.iter().map(|[n, likes]| (likes + PRIOR * share) / (n + PRIOR)).collect()
}

/// Logistic regression on user and item ids: one weight each, fitted to the training events with
/// ridge penalty `1 / c` by coordinate-wise Newton steps. (The dense solver of `common::logistic`
/// would need a column per id.)
#[derive(Debug, Clone)]
pub struct IdRegression {
    intercept: f64,
    users: Vec<f64>,
    items: Vec<f64>,
}

impl IdRegression {
    /// Fits the weights to the events that `mask` keeps.
    pub fn fit(data: &Interactions, mask: &[Vec<bool>], c: f64) -> Self {
        let mut rows = Vec::new();
        for (user, (events, kept)) in data.histories.iter().zip(mask).enumerate() {
            for (event, _) in events.iter().zip(kept).filter(|(_, kept)| **kept) {
                rows.push((user, event.item as usize, event.liked));
            }
        }
        Self::of_rows(&rows, data.users.len(), data.items.len(), c)
    }

    /// Fits the weights to rows of user, item and label.
    pub fn of_rows(rows: &[(usize, usize, bool)], users: usize, items: usize, c: f64) -> Self {
        let mut model = Self { intercept: 0.0, users: vec![0.0; users], items: vec![0.0; items] };
        for _ in 0..60 {
            let mut moved = 0f64;
            for side in 0..3 {
                let size = [1, model.users.len(), model.items.len()][side];
                let mut sums = vec![[0.0; 2]; size];
                for &(user, item, liked) in rows {
                    let p = model.probability(user, item);
                    let sum = &mut sums[[0, user, item][side]];
                    sum[0] += f64::from(u8::from(liked)) - p;
                    sum[1] += p * (1.0 - p);
                }
                let weights = match side {
                    0 => std::slice::from_mut(&mut model.intercept),
                    1 => &mut model.users[..],
                    _ => &mut model.items[..],
                };
                let ridge = if side == 0 { 0.0 } else { 1.0 / c };
                for (weight, [gradient, curvature]) in weights.iter_mut().zip(sums) {
                    let step = (gradient - ridge * *weight) / (curvature + ridge + 1e-9);
                    *weight += step;
                    moved = moved.max(step.abs());
                }
            }
            if moved < 1e-6 {
                break;
            }
        }
        model
    }

    /// The weights of a number as user and as item, added: for numbers that are only one of both.
    pub fn weight(&self, number: usize) -> f64 {
        self.users[number] + self.items[number]
    }

    /// p(liked).
    pub fn probability(&self, user: usize, item: usize) -> f64 {
        1.0 / (1.0 + (-(self.intercept + self.users[user] + self.items[item])).exp())
    }
}

/// p(liked) from one feature: the share of likes in the history. The simplest use of the prompt.
///
/// # Errors
/// Those of the regression.
pub fn history_share(train: (&[f64], &[bool]), test: &[f64]) -> Result<Vec<f64>> {
    let column = |values: &[f64]| {
        Array2::from_shape_vec((values.len(), 1), values.to_vec())
            .map_err(|error| Error::Bug(error.to_string()))
    };
    let model = LogisticRegression::fit_binary(
        column(train.0)?.view(),
        train.1,
        None,
        LogisticOptions::default(),
    )?;
    Ok(model.probabilities(column(test)?.view())?.column(1).to_vec())
}

/// Where the groups of a method come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// No groups: the rule takes all parameters.
    None,
    /// Circuits of forget and retain pairs.
    Circuits,
    /// The same with randomly corrupted pairs.
    RandomCorruption,
    /// The circuits' groups dealt out at random.
    Shuffled,
    /// The gradient contribution alone (λ_s = 0), without circuits.
    GradientOnly,
    /// All modules shared.
    AllShared,
    /// Forget and retain exchanged.
    Swapped,
    /// Membership in the circuits instead of contributions.
    SetRule,
}

/// An unlearning method of the comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Method {
    /// Name in the table.
    pub name: &'static str,
    /// Part in the comparison.
    pub role: Role,
    /// Forget loss; `None` = the config's.
    pub loss: Option<ForgetLoss>,
    /// How gradients are combined.
    pub rule: Rule,
    /// Groups.
    pub source: Source,
    /// Groups' order is block-wise.
    pub blockwise: bool,
    /// Low-rank adapters.
    pub lora: bool,
    /// Whether it belongs to the short list that every request gets.
    pub short: bool,
    /// What to know.
    pub note: &'static str,
}

/// All methods: the paper's, then baselines, ablations, controls.
pub fn methods() -> Vec<Method> {
    let base = Method {
        name: "",
        role: Role::Baseline,
        loss: None,
        rule: Rule::Weighted,
        source: Source::None,
        blockwise: false,
        lora: false,
        short: false,
        note: "",
    };
    let loss = |name, loss, rule, short, note| Method {
        name,
        loss: Some(loss),
        rule,
        short,
        note,
        ..base.clone()
    };
    let groups = |name, role, source, note| Method {
        name,
        role,
        rule: Rule::Grouped,
        source,
        note,
        ..base.clone()
    };
    let cure = groups(
        "CURE",
        Role::Paper,
        Source::Circuits,
        "reconstruction from the abstract and a secondary summary",
    );
    vec![
        Method { short: true, ..cure.clone() },
        Method {
            name: "CURE's loss, all weights projected",
            role: Role::Ours,
            loss: Some(ForgetLoss::CfKl),
            rule: Rule::PcGrad,
            short: true,
            note: "no groups and no circuits: embeddings and norms move too",
            ..base.clone()
        },
        Method { name: "CURE, block-wise", role: Role::Ablation, blockwise: true, ..cure.clone() },
        Method { name: "CURE, LoRA", role: Role::Ablation, lora: true, ..cure.clone() },
        Method {
            name: "CURE, set rule",
            role: Role::Ablation,
            source: Source::SetRule,
            ..cure.clone()
        },
        Method {
            name: "CURE, NPO loss",
            role: Role::Ablation,
            loss: Some(ForgetLoss::Npo),
            ..cure.clone()
        },
        loss("GA", ForgetLoss::Ga, Rule::ForgetOnly, false, "forget loss only"),
        loss("GradDiff", ForgetLoss::Ga, Rule::Weighted, true, "GA and retain loss, all weights"),
        loss(
            "further training on what stays",
            ForgetLoss::Ga,
            Rule::RetainOnly,
            true,
            "no forget loss, no KL to the original",
        ),
        loss("NPO", ForgetLoss::Npo, Rule::Weighted, true, "with retain loss, all weights"),
        loss("uniform KL", ForgetLoss::UniformKl, Rule::Weighted, false, "with retain loss"),
        loss(
            "PCGrad",
            ForgetLoss::Ga,
            Rule::PcGrad,
            false,
            "GA and retain loss, all weights projected",
        ),
        loss(
            "E2URec teacher",
            ForgetLoss::E2urec,
            Rule::Weighted,
            false,
            "teacher tuned on the forget set",
        ),
        groups(
            "random groups",
            Role::Control,
            Source::Shuffled,
            "CURE's groups dealt out at random, heads among heads, MLPs among MLPs",
        ),
        groups("groups by gradient only", Role::Control, Source::GradientOnly, "no circuit"),
        groups("all modules shared", Role::Control, Source::AllShared, "projection only"),
        groups("swapped groups", Role::Control, Source::Swapped, "forget and retain exchanged"),
        groups(
            "random corruption",
            Role::Control,
            Source::RandomCorruption,
            "CURE with counterfactuals drawn at random",
        ),
    ]
}

/// How users are spread over shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharding {
    /// At random (SISA, [Bourtoule et al. 2021](https://arxiv.org/abs/1912.03817)).
    Random,
    /// By taste: users ordered by their share of likes and cut (in the manner of RecEraser).
    ByTaste,
}

/// Shard of every training user; others get none.
pub fn shards(
    data: &Interactions,
    split: &Split,
    sharding: Sharding,
    count: usize,
    stream: &mut Stream,
) -> Vec<Option<usize>> {
    let mut users = split.train_users();
    match sharding {
        Sharding::Random => stream.shuffle(&mut users),
        Sharding::ByTaste => {
            let share = |user: usize| {
                let events = &data.histories[user][..split.train[user]];
                events.iter().filter(|event| event.liked).count() as f64 / events.len() as f64
            };
            users.sort_by(|&a, &b| share(a).total_cmp(&share(b)).then(a.cmp(&b)));
        }
    }
    let mut all = vec![None; data.users.len()];
    let per = users.len().div_ceil(count.max(1)).max(1);
    for (at, &user) in users.iter().enumerate() {
        all[user] = Some(at / per);
    }
    all
}
