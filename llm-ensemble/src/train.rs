//! The visible loops: iterative weighted majority vote (Algorithm 1) and Dawid–Skene EM
//! (Algorithm 2), and [`fit`], which runs any [`Method`].

use std::collections::BTreeMap;

use common::rng::Seed;
use common::{Error, Result};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::baselines;
use crate::model::{confusion, vote};
use crate::votes::{Label, MISSING, Votes};

/// Most numbers in one table (scores or confusion matrices): 2 GiB of `f64`.
const MAX_TABLE: usize = 1 << 28;

/// How votes become labels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Dawid–Skene with one accuracy per worker.
    OneCoin,
    /// Dawid–Skene with a confusion matrix per worker.
    DawidSkene,
}

impl Method {
    /// Every method.
    pub const ALL: &[Self] = &[
        Self::Mv,
        Self::Wmv,
        Self::Iwmv,
        Self::IwmvLogOdds,
        Self::IwmvAccuracy,
        Self::OneCoin,
        Self::DawidSkene,
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mv => "majority vote",
            Self::Wmv => "weighted vote",
            Self::Iwmv => "IWMV",
            Self::IwmvLogOdds => "IWMV log-odds",
            Self::IwmvAccuracy => "IWMV accuracy",
            Self::OneCoin => "one-coin Dawid-Skene",
            Self::DawidSkene => "Dawid-Skene",
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

/// | option | default | meaning | range |
/// |---|---|---|---|
/// | `max_rounds` | 100 | cap on rounds or EM iterations | ≥ 1 |
/// | `ties` | lowest | tie policy of the labels | |
/// | `cardinality` | label set | L of Eq. 3 and 6 | |
/// | `flip_guard` | false | clip w to ≥ 1/L: no worker votes against itself | |
/// | `alpha` | 0.01 | Dawid–Skene smoothing per cell (Eq. 7) | > 0 |
/// | `tolerance` | 1e-5 | EM stops below this gain of log-likelihood per vote | ≥ 0 |
/// | `seed` | 42 | restarts of MACE | |
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Cap on rounds or EM iterations.
    pub max_rounds: usize,
    /// Tie policy.
    pub ties: Ties,
    /// L of Eq. 3 and 6.
    pub cardinality: Cardinality,
    /// Clip accuracies to at least 1/L.
    pub flip_guard: bool,
    /// Dawid–Skene smoothing per cell.
    pub alpha: f64,
    /// EM stops below this gain of mean log-likelihood per vote.
    pub tolerance: f64,
    /// Seed of methods that draw.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_rounds: 100,
            ties: Ties::Lowest,
            cardinality: Cardinality::LabelSet,
            flip_guard: false,
            alpha: 0.01,
            tolerance: 1e-5,
            seed: 42,
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
        if self.prior.iter().flatten().any(|&(w, s)| !(0.0..=1.0).contains(&w) || !(s >= 0.0)) {
            return Err(Error::usage(
                "a prior accuracy outside 0 to 1 or a negative strength; correct the prior",
            ));
        }
        Ok(())
    }

    fn gold_of(&self, item: usize) -> Option<Label> {
        self.gold.get(item).copied().flatten()
    }

    fn prior_of(&self, worker: usize) -> Option<(f64, f64)> {
        self.prior.get(worker).copied().flatten()
    }
}

/// Something about the input that the result's reader should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Warning {
    /// With fewer than 3 workers, weights cannot be identified from agreement alone.
    FewWorkers,
    /// The labels alternated between two states; the last one is reported.
    TwoCycle,
    /// The cap on rounds was reached before the labels were stable.
    RoundLimit,
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
        Method::Iwmv | Method::IwmvLogOdds | Method::IwmvAccuracy => {
            iterative_weighted_vote(votes, method, evidence, options)
        }
        Method::OneCoin => one_coin(votes, evidence, options),
        Method::DawidSkene => {
            check_table("confusion matrices", votes.workers.len(), votes.labels.len(), 2)?;
            dawid_skene(votes, evidence, options)
        }
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

/// Algorithm 1: Eq. 1, 2 and 3 in turn until no label changes.
fn iterative_weighted_vote(
    votes: &Votes,
    method: Method,
    evidence: &Evidence,
    options: &Options,
) -> Consensus {
    let (items, workers, l) = (votes.items.len(), votes.workers.len(), votes.labels.len());
    let cardinality = match options.cardinality {
        Cardinality::LabelSet => l as f64,
        Cardinality::Effective => votes.effective_labels().max(2.0),
        Cardinality::Fixed(l) => l,
    };
    let rule = |accuracy: f64| {
        let accuracy = if options.flip_guard { accuracy.max(1.0 / cardinality) } else { accuracy };
        match method {
            Method::IwmvLogOdds => vote::log_odds_weight(cardinality, accuracy),
            Method::IwmvAccuracy => accuracy,
            _ => vote::linear_weight(cardinality, accuracy),
        }
    };
    let totals = votes.votes_per_worker();
    let mut weights =
        if evidence.weights.is_empty() { vec![1.0; workers] } else { evidence.weights.clone() };
    let mut state = VoteState::new(items, workers);
    let mut round = Round { votes, evidence, ties: options.ties, accuracy: Vec::new() };
    let mut history = Vec::new();
    let mut warnings = Vec::new();
    let mut rounds = 0;
    loop {
        let changed = round.vote(&weights, &mut state);
        history.push(changed as f64);
        if changed == 0 {
            break;
        }
        if rounds == options.max_rounds {
            warnings.push(Warning::RoundLimit);
            break;
        }
        if rounds > 1 && state.hashes[0] == state.hashes[2] {
            warnings.push(Warning::TwoCycle);
            break;
        }
        round.accuracy = (0..workers)
            .map(|i| {
                vote::agreement(state.agreed[i] as f64, totals[i] as f64, evidence.prior_of(i))
            })
            .collect();
        weights = round.accuracy.iter().map(|w| w.map_or(0.0, rule)).collect();
        rounds += 1;
    }
    let accuracy = round.accuracy.clone();
    let mut result = finish_vote(votes, method, evidence, options, weights, accuracy);
    result.rounds = rounds;
    result.history = history;
    result.warnings = warnings;
    result
}

/// Labels of the last round and what follows from them.
struct VoteState {
    label: Vec<Label>,
    /// Votes per worker that agree with `label`.
    agreed: Vec<i64>,
    /// Hashes of the last three label vectors, newest first.
    hashes: [u64; 3],
}

impl VoteState {
    fn new(items: usize, workers: usize) -> Self {
        Self { label: vec![MISSING; items], agreed: vec![0; workers], hashes: [0; 3] }
    }
}

struct Round<'a> {
    votes: &'a Votes,
    evidence: &'a Evidence,
    ties: Ties,
    accuracy: Vec<Option<f64>>,
}

impl Round<'_> {
    /// Eq. 1 for every item. Only items whose label changes touch the agreement counts, so a late
    /// round costs one pass of additions. Returns how many labels changed.
    fn vote(&self, weights: &[f64], state: &mut VoteState) -> usize {
        match self.votes.labels.len() {
            2 => self.vote_n::<2>(weights, state),
            3 => self.vote_n::<3>(weights, state),
            4 => self.vote_n::<4>(weights, state),
            5 => self.vote_n::<5>(weights, state),
            _ => self.vote_n::<0>(weights, state),
        }
    }

    fn vote_n<const N: usize>(&self, weights: &[f64], state: &mut VoteState) -> usize {
        let l = if N == 0 { self.votes.labels.len() } else { N };
        let size = slice_size(self.votes.items.len(), self.votes.len(), 0);
        let changes: Vec<Vec<(u32, Label)>> = state
            .label
            .par_chunks(size)
            .enumerate()
            .map(|(slice, labels)| {
                let mut changes = Vec::new();
                let mut scores = vec![0.0; l];
                for (offset, &old) in labels.iter().enumerate() {
                    let item = slice * size + offset;
                    let new = self.label(item, weights, &mut scores[..l]);
                    if new != old {
                        changes.push((item as u32, new));
                    }
                }
                changes
            })
            .collect();
        let mut changed = 0;
        state.hashes.rotate_right(1);
        state.hashes[0] = state.hashes[1];
        for (item, new) in changes.into_iter().flatten() {
            let old = std::mem::replace(&mut state.label[item as usize], new);
            for (worker, label) in self.votes.of(item as usize) {
                state.agreed[worker] += i64::from(label == new) - i64::from(label == old);
            }
            state.hashes[0] ^= position_hash(item, old) ^ position_hash(item, new);
            changed += 1;
        }
        changed
    }

    #[inline]
    fn label(&self, item: usize, weights: &[f64], scores: &mut [f64]) -> Label {
        let range = self.votes.range(item);
        if let Some(gold) = self.evidence.gold_of(item) {
            return gold;
        }
        if range.is_empty() {
            return MISSING;
        }
        let workers = &self.votes.worker_codes()[range.clone()];
        let labels = &self.votes.label_codes()[range];
        vote::scores(workers, labels, weights, scores);
        if only_negative(workers, weights) {
            count_votes(labels, scores);
        }
        if self.ties == Ties::Lowest {
            return vote::argmax(scores);
        }
        self.break_tie(item, scores)
    }

    #[cold]
    fn break_tie(&self, item: usize, scores: &[f64]) -> Label {
        let tied = vote::tied(scores, vote::TIE, vote::TIE);
        if tied.len() == 1 {
            return tied[0];
        }
        match self.ties {
            Ties::Lowest => tied[0],
            Ties::Random(seed) => {
                let mut draw = Seed::new(seed).stream(&self.votes.items.name(item));
                tied[draw.below(tied.len())]
            }
            Ties::PreferBestModel => {
                let accuracy = |worker: usize| self.accuracy.get(worker).copied().flatten();
                let mut best = (f64::NEG_INFINITY, tied[0]);
                for (worker, label) in self.votes.of(item) {
                    let w = accuracy(worker).unwrap_or(0.0);
                    if tied.contains(&label) && (w > best.0 || (w == best.0 && label < best.1)) {
                        best = (w, label);
                    }
                }
                best.1
            }
        }
    }
}

/// Every voter has a weight ≤ 0. Stops at the first positive one, usually at once.
#[inline]
fn only_negative(workers: &[u32], weights: &[f64]) -> bool {
    workers.iter().all(|&worker| weights[worker as usize] <= 0.0)
}

fn count_votes(labels: &[Label], scores: &mut [f64]) {
    scores.fill(0.0);
    for &label in labels {
        scores[label as usize] += 1.0;
    }
}

/// Zobrist-like hash of one item's label: a label vector is the XOR over its items.
fn position_hash(item: u32, label: Label) -> u64 {
    let mut x = (u64::from(item) << 16 | u64::from(label)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Eq. 1 once more, keeping the scores; counts ties and lists the fallbacks.
pub(crate) fn finish_vote(
    votes: &Votes,
    method: Method,
    evidence: &Evidence,
    options: &Options,
    weights: Vec<f64>,
    accuracy: Vec<Option<f64>>,
) -> Consensus {
    let (items, l) = (votes.items.len(), votes.labels.len());
    let round = Round { votes, evidence, ties: options.ties, accuracy };
    let mut scores = vec![0.0; items * l];
    let mut label = vec![MISSING; items];
    let mut fallbacks = Vec::new();
    let mut ties = 0;
    for item in 0..items {
        let row = &mut scores[item * l..(item + 1) * l];
        label[item] = round.label(item, &weights, row);
        let range = votes.range(item);
        if range.is_empty() {
            continue;
        }
        if evidence.gold_of(item).is_some() {
            let (workers, labels) =
                (&votes.worker_codes()[range.clone()], &votes.label_codes()[range]);
            vote::scores(workers, labels, &weights, row);
            continue;
        }
        if only_negative(&votes.worker_codes()[range], &weights) {
            fallbacks.push(item as u32);
        }
        let top = row.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        let floor = top - vote::TIE * (1.0 + top.abs());
        ties += usize::from(row.iter().filter(|&&s| s >= floor).count() > 1);
    }
    Consensus {
        method,
        labels: l,
        label,
        scores,
        probabilistic: false,
        weights,
        accuracy: round.accuracy,
        rounds: 0,
        ties,
        fallbacks,
        history: Vec::new(),
        warnings: Vec::new(),
    }
}

/// Items per slice of a parallel pass; depends on the data only, so that sums are added
/// in the same order for any number of threads.
///
/// At most 16 slices; fewer when each needs a table of `table` numbers that would outweigh its
/// votes.
fn slice_size(items: usize, votes: usize, table: usize) -> usize {
    let by_table = votes / table.max(1);
    let count = (votes / 16_384).min(by_table).clamp(1, 16);
    items.div_ceil(count).max(1)
}

/// Algorithm 2: Dawid–Skene EM. Each pass runs Eq. 8 on an item and at once adds its posterior to
/// the counts of the next Eq. 7.
fn dawid_skene(votes: &Votes, evidence: &Evidence, options: &Options) -> Consensus {
    let (workers, l) = (votes.workers.len(), votes.labels.len());
    let cells = l * l;
    let mut posterior = vote_shares(votes, evidence);
    let mut counts = first_counts(votes, &posterior);
    let mut table = vec![0.0; workers * cells];
    let mut history: Vec<f64> = Vec::new();
    let mut warnings = Vec::new();
    loop {
        let prior = class_prior(&counts.prior);
        table.par_chunks_mut(cells.max(1)).zip(counts.table.par_chunks(cells.max(1))).for_each(
            |(out, counts)| {
                confusion::m_step(counts, l, options.alpha, None, out);
            },
        );
        let likelihood = match l {
            2 => em_pass::<2>(votes, evidence, &prior, &table, &mut posterior, &mut counts),
            3 => em_pass::<3>(votes, evidence, &prior, &table, &mut posterior, &mut counts),
            4 => em_pass::<4>(votes, evidence, &prior, &table, &mut posterior, &mut counts),
            5 => em_pass::<5>(votes, evidence, &prior, &table, &mut posterior, &mut counts),
            _ => em_pass::<0>(votes, evidence, &prior, &table, &mut posterior, &mut counts),
        } / votes.len().max(1) as f64;
        let previous = history.last().copied().unwrap_or(f64::NEG_INFINITY);
        history.push(likelihood);
        if likelihood - previous < options.tolerance {
            break;
        }
        if history.len() >= options.max_rounds {
            warnings.push(Warning::RoundLimit);
            break;
        }
    }
    let prior = class_prior(&counts.prior);
    let totals = votes.votes_per_worker();
    let accuracy: Vec<Option<f64>> = (0..workers)
        .map(|i| {
            let diagonal = |k: usize| table[i * cells + k * l + k] * prior[k];
            (totals[i] > 0).then(|| (0..l).map(diagonal).sum())
        })
        .collect();
    let weights =
        accuracy.iter().map(|w| w.map_or(0.0, |w| vote::log_odds_weight(l as f64, w))).collect();
    posterior_consensus(
        votes,
        Method::DawidSkene,
        evidence,
        options,
        posterior,
        EmReport { weights, accuracy, history, warnings },
    )
}

/// What an EM loop reports beside the posterior.
pub(crate) struct EmReport {
    pub(crate) weights: Vec<f64>,
    pub(crate) accuracy: Vec<Option<f64>>,
    pub(crate) history: Vec<f64>,
    pub(crate) warnings: Vec<Warning>,
}

/// Expected counts: `prior`\[k\] = Σ_j μ_j(k), `table` as in [`confusion`].
struct Counts {
    prior: Vec<f64>,
    table: Vec<f64>,
}

/// μ_j(k) = share of the votes; one-hot for gold items, zero without votes.
pub(crate) fn vote_shares(votes: &Votes, evidence: &Evidence) -> Vec<f64> {
    let l = votes.labels.len();
    let mut posterior = vec![0.0; votes.items.len() * l];
    for (item, row) in posterior.chunks_mut(l.max(1)).enumerate() {
        if let Some(gold) = evidence.gold_of(item) {
            row[gold as usize] = 1.0;
            continue;
        }
        let share = 1.0 / votes.range(item).len().max(1) as f64;
        for &label in &votes.label_codes()[votes.range(item)] {
            row[label as usize] += share;
        }
    }
    posterior
}

fn first_counts(votes: &Votes, posterior: &[f64]) -> Counts {
    let l = votes.labels.len();
    let mut counts = Counts { prior: vec![0.0; l], table: vec![0.0; votes.workers.len() * l * l] };
    for (item, row) in posterior.chunks(l.max(1)).enumerate() {
        add_counts(votes, item, row, &mut counts);
    }
    counts
}

#[inline]
fn add_counts(votes: &Votes, item: usize, posterior: &[f64], counts: &mut Counts) {
    let l = posterior.len();
    for (total, p) in counts.prior.iter_mut().zip(posterior) {
        *total += p;
    }
    for (worker, label) in votes.of(item) {
        let at = (worker * l + label as usize) * l;
        for (count, p) in counts.table[at..at + l].iter_mut().zip(posterior) {
            *count += p;
        }
    }
}

/// π_k of Eq. 7, with 1e-12 so that a label without mass keeps a defined logarithm.
fn class_prior(mass: &[f64]) -> Vec<f64> {
    let total: f64 = mass.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    mass.iter().map(|m| m / total + 1e-12).collect()
}

/// Eq. 8 on every item and the counts for the next Eq. 7; returns the log-likelihood.
fn em_pass<const N: usize>(
    votes: &Votes,
    evidence: &Evidence,
    prior: &[f64],
    table: &[f64],
    posterior: &mut [f64],
    counts: &mut Counts,
) -> f64 {
    let l = if N == 0 { prior.len() } else { N };
    if l == 0 {
        return 0.0;
    }
    let size = slice_size(votes.items.len(), votes.len(), table.len());
    let partial: Vec<(f64, Counts)> = posterior
        .par_chunks_mut(size * l)
        .enumerate()
        .map(|(slice, chunk)| {
            let mut counts = Counts { prior: vec![0.0; l], table: vec![0.0; table.len()] };
            let mut likelihood = 0.0;
            for (offset, row) in chunk.chunks_exact_mut(l).enumerate() {
                let item = slice * size + offset;
                let range = votes.range(item);
                if range.is_empty() {
                    continue;
                }
                let workers = &votes.worker_codes()[range.clone()];
                let labels = &votes.label_codes()[range];
                likelihood += confusion::e_step::<N>(workers, labels, prior, table, row);
                if let Some(gold) = evidence.gold_of(item) {
                    row.fill(0.0);
                    row[gold as usize] = 1.0;
                }
                add_counts(votes, item, &row[..l], &mut counts);
            }
            (likelihood, counts)
        })
        .collect();
    let mut likelihood = 0.0;
    counts.prior.fill(0.0);
    counts.table.fill(0.0);
    for (part, slice) in partial {
        likelihood += part;
        counts.prior.iter_mut().zip(&slice.prior).for_each(|(a, b)| *a += b);
        counts.table.iter_mut().zip(&slice.table).for_each(|(a, b)| *a += b);
    }
    likelihood
}

/// Dawid–Skene with C_i = w_i on the diagonal and (1 − w_i) / (L − 1) elsewhere.
fn one_coin(votes: &Votes, evidence: &Evidence, options: &Options) -> Consensus {
    let (workers, l) = (votes.workers.len(), votes.labels.len());
    let wrong_labels = l.saturating_sub(1).max(1) as f64;
    let totals = votes.votes_per_worker();
    let mut posterior = vote_shares(votes, evidence);
    let (mut mass, mut right) = one_coin_counts(votes, &posterior);
    let mut history: Vec<f64> = Vec::new();
    let mut warnings = Vec::new();
    let mut accuracy = vec![0.5; workers];
    loop {
        let log_prior: Vec<f64> = class_prior(&mass).iter().map(|p| p.ln()).collect();
        for i in 0..workers {
            let (prior, strength) = evidence.prior_of(i).unwrap_or((0.0, 0.0));
            let total = totals[i] as f64 + strength + l as f64 * options.alpha;
            accuracy[i] = (right[i] + strength * prior + options.alpha) / total;
            if options.flip_guard {
                accuracy[i] = accuracy[i].max(1.0 / l.max(1) as f64);
            }
        }
        let log_wrong: Vec<f64> = accuracy
            .iter()
            .map(|w| ((1.0 - w).max(f64::MIN_POSITIVE) / wrong_labels).ln())
            .collect();
        let log_odds: Vec<f64> =
            accuracy.iter().zip(&log_wrong).map(|(w, wrong)| w.ln() - wrong).collect();
        let mut likelihood = 0.0;
        for (item, row) in posterior.chunks_mut(l.max(1)).enumerate() {
            let range = votes.range(item);
            if range.is_empty() {
                continue;
            }
            let codes = &votes.worker_codes()[range.clone()];
            let labels = &votes.label_codes()[range];
            likelihood +=
                confusion::e_step_one_coin(codes, labels, &log_prior, &log_odds, &log_wrong, row);
            if let Some(gold) = evidence.gold_of(item) {
                row.fill(0.0);
                row[gold as usize] = 1.0;
            }
        }
        (mass, right) = one_coin_counts(votes, &posterior);
        likelihood /= votes.len().max(1) as f64;
        let previous = history.last().copied().unwrap_or(f64::NEG_INFINITY);
        history.push(likelihood);
        if likelihood - previous < options.tolerance {
            break;
        }
        if history.len() >= options.max_rounds {
            warnings.push(Warning::RoundLimit);
            break;
        }
    }
    let accuracy: Vec<Option<f64>> =
        (0..workers).map(|i| (totals[i] > 0).then_some(accuracy[i])).collect();
    let weights =
        accuracy.iter().map(|w| w.map_or(0.0, |w| vote::log_odds_weight(l as f64, w))).collect();
    posterior_consensus(
        votes,
        Method::OneCoin,
        evidence,
        options,
        posterior,
        EmReport { weights, accuracy, history, warnings },
    )
}

/// (Σ_j μ_j(k) per label, Σ_j μ_j(W_ij) per worker).
fn one_coin_counts(votes: &Votes, posterior: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let l = votes.labels.len();
    let mut mass = vec![0.0; l];
    let mut right = vec![0.0; votes.workers.len()];
    for (item, row) in posterior.chunks(l.max(1)).enumerate() {
        mass.iter_mut().zip(row).for_each(|(m, p)| *m += p);
        for (worker, label) in votes.of(item) {
            right[worker] += row[label as usize];
        }
    }
    (mass, right)
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
    let round = Round { votes, evidence, ties: options.ties, accuracy: report.accuracy };
    let mut label = vec![MISSING; votes.items.len()];
    let mut ties = 0;
    for (item, row) in scores.chunks(l.max(1)).enumerate() {
        if votes.range(item).is_empty() && evidence.gold_of(item).is_none() {
            continue;
        }
        label[item] = vote::argmax(row);
        let tied = vote::tied(row, vote::TIE, vote::TIE);
        if tied.len() > 1 {
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
