//! The visible loops, and [`fit`], which runs any [`Method`]: iterative weighted majority vote
//! (Algorithm 1), Dawid–Skene EM (Algorithm 2), and ours, the opinion pool.

mod em;
mod iwmv;
mod one_coin;
mod pool;
mod shared;
mod slots;

use std::collections::BTreeMap;

use common::{Error, Result};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use self::iwmv::finish_vote;
pub use self::shared::{Shared, SharedFit, per_attribute_shared, update};
use crate::baselines;
use crate::model::vote;
use crate::votes::{Label, MISSING, Votes};

/// Most numbers in one table (scores or confusion matrices): 2 GiB of `f64`.
const MAX_TABLE: usize = 1 << 28;

/// How votes become labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Majority vote.
    Mv,
    /// One vote with the weights of [`Evidence::weights`].
    Wmv,
    /// Iterative weighted majority vote, the paper's method.
    Iwmv,
    /// IWMV with the log-odds weight of Eq. 6.
    IwmvLogOdds,
    /// IWMV with the accuracy itself as the weight (peerannot's rule).
    IwmvAccuracy,
    /// IWMV with the weights of near-copies divided among them.
    IwmvClones,
    /// Dawid–Skene with one accuracy per worker.
    OneCoin,
    /// One-coin Dawid–Skene over the answers each item received: for open value sets.
    OpenOneCoin,
    /// Dawid–Skene with a confusion matrix per worker.
    DawidSkene,
    /// Dawid–Skene, each confusion row shrunk towards the pooled row of its label.
    HierarchicalDs,
    /// Dawid–Skene with subtypes of items that workers may get wrong together.
    SubtypeDs,
    /// Ours: the equal-weight linear opinion pool of IWMV, hierarchical and subtype Dawid–Skene.
    OpinionPool,
    /// Item difficulty and worker ability (Whitehill et al. 2009).
    Glad,
    /// Competence and spamming distribution per worker (Hovy et al. 2013).
    Mace,
    /// Vote weighted by agreement with the majority, once.
    Wawa,
    /// Vote weighted by skill, updated by gradient from zero knowledge.
    ZeroBasedSkill,
}

impl Method {
    /// Every method.
    pub const ALL: &[Self] = &[
        Self::Mv,
        Self::Wmv,
        Self::Iwmv,
        Self::IwmvLogOdds,
        Self::IwmvAccuracy,
        Self::IwmvClones,
        Self::OneCoin,
        Self::OpenOneCoin,
        Self::DawidSkene,
        Self::HierarchicalDs,
        Self::SubtypeDs,
        Self::OpinionPool,
        Self::Glad,
        Self::Mace,
        Self::Wawa,
        Self::ZeroBasedSkill,
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mv => "majority vote",
            Self::Wmv => "weighted vote",
            Self::Iwmv => "IWMV",
            Self::IwmvLogOdds => "IWMV log-odds",
            Self::IwmvAccuracy => "IWMV accuracy",
            Self::IwmvClones => "IWMV clone-aware",
            Self::OneCoin => "one-coin Dawid-Skene",
            Self::OpenOneCoin => "open-set one-coin",
            Self::DawidSkene => "Dawid-Skene",
            Self::HierarchicalDs => "hierarchical Dawid-Skene",
            Self::SubtypeDs => "subtype Dawid-Skene",
            Self::OpinionPool => "opinion pool",
            Self::Glad => "GLAD",
            Self::Mace => "MACE",
            Self::Wawa => "Wawa",
            Self::ZeroBasedSkill => "zero-based skill",
        }
    }
}

/// Which of several labels with the same score wins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ties {
    /// The lowest label.
    #[default]
    Lowest,
    /// A draw per item, from this seed and the item's name.
    Random(u64),
    /// The label with the most accurate voter.
    PreferBestModel,
    /// The label of the worker that comes first.
    FirstWorker,
}

/// What L means in Eq. 3 and Eq. 6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cardinality {
    /// The size of the label set.
    #[default]
    LabelSet,
    /// The mean number of distinct answers per item, at least 2: for open value sets.
    Effective,
    /// A given number.
    Fixed(f64),
}

/// What happens to an item whose voters all have weights ≤ 0.
///
/// Under either policy, an item whose highest score is shared (no label is elected) falls back to
/// majority vote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AllNegative {
    /// The votes count against their labels, so that the least damaged label wins. The published
    /// figures of IWMV use this.
    #[default]
    Against,
    /// Majority vote.
    Majority,
}

/// | option | default | meaning | range |
/// |---|---|---|---|
/// | `max_rounds` | 100 | cap on rounds or EM iterations | ≥ 1 |
/// | `ties` | lowest | tie policy of the labels | |
/// | `cardinality` | label set | L of Eq. 3 and 6 | |
/// | `all_negative` | against | items with only negative weights | |
/// | `flip_guard` | false | clip w to ≥ 1/L: no worker votes against itself | |
/// | `alpha` | 0.01 | Dawid–Skene smoothing per cell (Eq. 7) | > 0 |
/// | `tolerance` | 1e-5 | EM stops below this gain of log-likelihood per vote | ≥ 0 |
/// | `seed` | 42 | restarts of MACE | |
/// | `crowd_kit_mace` | false | MACE with the index mix-up of crowd-kit 1.4.2, to compare | |
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Cap on rounds or EM iterations.
    pub max_rounds: usize,
    /// Tie policy.
    pub ties: Ties,
    /// L of Eq. 3 and 6.
    pub cardinality: Cardinality,
    /// Items with only negative weights.
    pub all_negative: AllNegative,
    /// Clip accuracies to at least 1/L.
    pub flip_guard: bool,
    /// Dawid–Skene smoothing per cell.
    pub alpha: f64,
    /// EM stops below this gain of mean log-likelihood per vote.
    pub tolerance: f64,
    /// Seed of methods that draw.
    pub seed: u64,
    /// Reproduce the index mix-up of crowd-kit 1.4.2's MACE.
    pub crowd_kit_mace: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_rounds: 100,
            ties: Ties::Lowest,
            cardinality: Cardinality::LabelSet,
            all_negative: AllNegative::Against,
            flip_guard: false,
            alpha: 0.01,
            tolerance: 1e-5,
            seed: 42,
            crowd_kit_mace: false,
        }
    }
}

/// What is known beside the votes. Every part may be empty.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Known label per item; fixed in every round. Empty, or one entry per item.
    pub gold: Vec<Option<Label>>,
    /// Prior accuracy and its worth in votes, per worker. Empty, or one entry per worker.
    pub prior: Vec<Option<(f64, f64)>>,
    /// Log-prior per item over some labels (side information such as a rule's opinion), in nats up
    /// to a constant; used by [`Method::OpenOneCoin`]. Empty, or one entry per item.
    pub label_prior: Vec<Vec<(Label, f64)>>,
    /// Weights to vote with (for [`Method::Wmv`]) or to start from (IWMV). Empty, or one per worker.
    pub weights: Vec<f64>,
}

impl Evidence {
    fn check(&self, votes: &Votes) -> Result<()> {
        let (items, workers) = (votes.items.len(), votes.workers.len());
        for (what, found, expected) in [
            ("gold labels", self.gold.len(), items),
            ("prior accuracies", self.prior.len(), workers),
            ("weights", self.weights.len(), workers),
            ("label priors", self.label_prior.len(), items),
        ] {
            if found != 0 && found != expected {
                return Err(Error::usage(format!("{found} {what}, expected {expected} or none")));
            }
        }
        if let Some(label) =
            self.gold.iter().flatten().find(|&&label| label as usize >= votes.labels.len())
        {
            return Err(Error::usage(format!("gold label {label} is not in the label set")));
        }
        if self.weights.iter().any(|v| !v.is_finite()) {
            return Err(Error::usage("a weight that is not finite; weights must be finite"));
        }
        if self
            .prior
            .iter()
            .flatten()
            .any(|&(w, s)| !(0.0..=1.0).contains(&w) || s.is_nan() || s < 0.0)
        {
            return Err(Error::usage(
                "a prior accuracy outside 0 to 1 or a negative strength; correct the prior",
            ));
        }
        Ok(())
    }

    pub(crate) fn gold_of(&self, item: usize) -> Option<Label> {
        self.gold.get(item).copied().flatten()
    }

    pub(crate) fn prior_of(&self, worker: usize) -> Option<(f64, f64)> {
        self.prior.get(worker).copied().flatten()
    }
}

/// Something about the input that the result's reader should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Warning {
    /// With fewer than 3 workers, weights cannot be identified from agreement alone.
    FewWorkers,
    /// The labels came back to an earlier state (a 2-cycle, say); the last state is reported.
    Cycle,
    /// The cap on rounds was reached before the labels were stable.
    RoundLimit,
    /// The label set is too large for confusion matrices: a member of the pool was left out.
    MemberLeftOut,
    /// Mean accuracy is at most 1/L: the majority vote may be wrong more often than right.
    NearChance,
}

/// Aggregated labels.
#[derive(Debug, Clone)]
pub struct Consensus {
    /// How it was made.
    pub method: Method,
    /// Number of labels L.
    pub labels: usize,
    /// Label per item; [`MISSING`] without a vote.
    pub label: Vec<Label>,
    /// Score per item and label (items × L): weighted votes, or a posterior that sums to 1.
    pub scores: Vec<f64>,
    /// `scores` are probabilities.
    pub probabilistic: bool,
    /// Weight per worker, 0 without votes.
    pub weights: Vec<f64>,
    /// Estimated accuracy per worker; `None` without votes.
    pub accuracy: Vec<Option<f64>>,
    /// Updates of the weights or parameters.
    pub rounds: usize,
    /// Items whose top score is shared.
    pub ties: usize,
    /// Items whose voters all have weights ≤ 0: decided by majority vote.
    pub fallbacks: Vec<u32>,
    /// Mean log-likelihood per vote after each iteration (EM methods), or the number of labels
    /// that changed in each round (IWMV).
    pub history: Vec<f64>,
    /// What to know about the input.
    pub warnings: Vec<Warning>,
}

impl Consensus {
    /// Scores of one item, one per label.
    pub fn scores_of(&self, item: usize) -> &[f64] {
        &self.scores[item * self.labels..(item + 1) * self.labels]
    }
}

/// Aggregates the votes of one attribute.
///
/// # Errors
/// Evidence that does not fit the votes, or tables beyond memory (items × L, workers × L²).
pub fn fit(
    votes: &Votes,
    method: Method,
    evidence: &Evidence,
    options: &Options,
) -> Result<Consensus> {
    evidence.check(votes)?;
    check_table("scores", votes.items.len(), votes.labels.len(), 1)?;
    let mut result = match method {
        Method::Mv => baselines::majority_vote(votes, evidence, options),
        Method::Wmv => baselines::weighted_vote(votes, evidence, options)?,
        Method::Iwmv | Method::IwmvLogOdds | Method::IwmvAccuracy | Method::IwmvClones => {
            iwmv::iterative_weighted_vote(votes, method, evidence, options)
        }
        Method::OneCoin => one_coin::fit(votes, evidence, options),
        Method::OpenOneCoin => one_coin::fit_open(votes, evidence, options),
        Method::DawidSkene => em_method(votes, method, evidence, options, em::Update::Smoothed)?,
        Method::HierarchicalDs => {
            em_method(votes, method, evidence, options, em::Update::Hierarchical)?
        }
        Method::SubtypeDs => {
            let update = em::Update::Subtypes(em::SUBTYPES);
            em_method(votes, method, evidence, options, update)?
        }
        Method::OpinionPool => pool::fit(votes, evidence, options),
        Method::Glad => baselines::glad(votes, evidence, options),
        Method::Mace => baselines::mace(votes, evidence, options),
        Method::Wawa => baselines::wawa(votes, evidence, options),
        Method::ZeroBasedSkill => baselines::zero_based_skill(votes, evidence, options),
    };
    warn(votes, &mut result);
    Ok(result)
}

/// Aggregates many attributes at once, in parallel; results keep the order of `attributes`.
///
/// # Errors
/// The first error of any attribute.
pub fn per_attribute(
    attributes: &[(String, Votes)],
    method: Method,
    options: &Options,
) -> Result<BTreeMap<String, Consensus>> {
    attributes
        .par_iter()
        .map(|(name, votes)| Ok((name.clone(), fit(votes, method, &Evidence::default(), options)?)))
        .collect()
}

/// Probabilities per item and label (items × L): the posterior of a probabilistic method, or, for
/// a vote, the posterior of its workers' agreement under one coin each.
pub fn probabilities(votes: &Votes, consensus: &Consensus) -> Vec<f64> {
    if consensus.probabilistic {
        return consensus.scores.clone();
    }
    one_coin::vote_posterior(votes, &consensus.label)
}

/// What a model keeps of a fit to label other votes by Eq. 8.
#[derive(Debug, Clone)]
pub struct Confusions {
    /// π per label.
    pub prior: Vec<f64>,
    /// C as `[worker][voted label][true label]`.
    pub table: Vec<f64>,
}

/// Most numbers of all confusion matrices of a model.
const MAX_CONFUSIONS: usize = 1 << 20;

/// Eq. 7 on the labels of a probabilistic fit. Dawid–Skene smooths as in the fit; hierarchical and
/// subtype Dawid–Skene and the opinion pool get rows shrunk towards the pooled row of their label
/// (for the last two a summary: their own models have more parts); one coin gets its coins.
/// `None` for votes, open label sets, and more than a million numbers.
pub fn confusions(votes: &Votes, consensus: &Consensus, options: &Options) -> Option<Confusions> {
    let (workers, l) = (votes.workers.len(), votes.labels.len());
    if workers.saturating_mul(l).saturating_mul(l) > MAX_CONFUSIONS {
        return None;
    }
    match consensus.method {
        Method::DawidSkene => {
            Some(em::confusions(votes, &consensus.scores, options.alpha, em::Update::Smoothed))
        }
        Method::HierarchicalDs | Method::SubtypeDs | Method::OpinionPool => {
            Some(em::confusions(votes, &consensus.scores, options.alpha, em::Update::Hierarchical))
        }
        Method::OneCoin => Some(one_coin::confusions(votes, consensus)),
        _ => None,
    }
}

fn em_method(
    votes: &Votes,
    method: Method,
    evidence: &Evidence,
    options: &Options,
    update: em::Update,
) -> Result<Consensus> {
    let (workers, l) = (votes.workers.len(), votes.labels.len());
    check_table("confusion matrices", workers * update.components(1), l, 2)?;
    check_table("posteriors", votes.items.len(), update.components(l), 1)?;
    let fit = em::run(votes, evidence, options, update);
    Ok(posterior_consensus(votes, method, evidence, options, fit.posterior, fit.report))
}

fn check_table(what: &str, rows: usize, labels: usize, power: u32) -> Result<()> {
    let cells = labels.checked_pow(power).and_then(|c| c.checked_mul(rows));
    if cells.is_none_or(|c| c > MAX_TABLE) {
        return Err(Error::usage(format!(
            "{what} of {rows} rows and {labels} labels exceed {MAX_TABLE} numbers; split the items \
             by attribute or use a smaller label set"
        )));
    }
    Ok(())
}

fn warn(votes: &Votes, result: &mut Consensus) {
    let voters = votes.votes_per_worker().iter().filter(|&&n| n > 0).count();
    if voters < 3 && result.method != Method::Mv && result.method != Method::Wmv {
        result.warnings.push(Warning::FewWorkers);
    }
    let known: Vec<f64> = result.accuracy.iter().flatten().copied().collect();
    let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
    if !known.is_empty() && votes.labels.len() > 1 && mean <= 1.0 / votes.labels.len() as f64 {
        result.warnings.push(Warning::NearChance);
    }
}

/// What a probabilistic method reports beside the posterior.
pub(crate) struct EmReport {
    pub(crate) weights: Vec<f64>,
    pub(crate) accuracy: Vec<Option<f64>>,
    pub(crate) history: Vec<f64>,
    pub(crate) warnings: Vec<Warning>,
}

/// Labels, ties and bookkeeping from a posterior (items × L).
pub(crate) fn posterior_consensus(
    votes: &Votes,
    method: Method,
    evidence: &Evidence,
    options: &Options,
    scores: Vec<f64>,
    report: EmReport,
) -> Consensus {
    let l = votes.labels.len();
    let round = iwmv::Round { votes, evidence, options, accuracy: report.accuracy };
    let mut label = vec![MISSING; votes.items.len()];
    let mut ties = 0;
    for (item, row) in scores.chunks(l.max(1)).enumerate() {
        if votes.range(item).is_empty() && evidence.gold_of(item).is_none() {
            continue;
        }
        let (elected, top, next) = vote::top_two(row);
        label[item] = elected;
        if next >= top - vote::TIE * (1.0 + top.abs()) {
            ties += 1;
            label[item] = round.break_tie(item, row);
        }
    }
    Consensus {
        method,
        labels: l,
        label,
        scores,
        probabilistic: true,
        weights: report.weights,
        accuracy: round.accuracy,
        rounds: report.history.len(),
        ties,
        fallbacks: Vec::new(),
        history: report.history,
        warnings: report.warnings,
    }
}
