//! Iterative weighted majority vote (Algorithm 1).

use std::collections::HashSet;

use common::rng::Seed;
use rayon::prelude::*;

use super::{
    AllNegative, Cardinality, Consensus, Evidence, Method, Options, Ties, Warning, slice_size,
};
use crate::model::{clones, vote};
use crate::votes::{Label, MISSING, Votes};

/// Algorithm 1: Eq. 1, 2 and 3 in turn until no label changes.
pub(super) fn iterative_weighted_vote(
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
    let pairs = (method == Method::IwmvClones).then(|| clones::pair_counts(votes));
    let mut seen = HashSet::new();
    let mut weights =
        if evidence.weights.is_empty() { vec![1.0; workers] } else { evidence.weights.clone() };
    let mut state = VoteState::new(items, workers);
    let mut round = Round { votes, evidence, options, accuracy: Vec::new() };
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
        if !seen.insert(state.hash) {
            warnings.push(Warning::Cycle);
            break;
        }
        round.accuracy = (0..workers)
            .map(|i| {
                vote::agreement(state.agreed[i] as f64, totals[i] as f64, evidence.prior_of(i))
            })
            .collect();
        weights = round.accuracy.iter().map(|w| w.map_or(0.0, rule)).collect();
        if let Some(pairs) = &pairs {
            let discounts = clones::discounts(pairs, &round.accuracy, l);
            weights.iter_mut().zip(discounts).for_each(|(v, d)| *v *= d);
        }
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
    /// Hash of `label`.
    hash: u64,
    /// Weights of the round before; empty before the first.
    weights: Vec<f64>,
}

impl VoteState {
    fn new(items: usize, workers: usize) -> Self {
        Self { label: vec![MISSING; items], agreed: vec![0; workers], hash: 0, weights: Vec::new() }
    }
}

pub(super) struct Round<'a> {
    pub(super) votes: &'a Votes,
    pub(super) evidence: &'a Evidence,
    pub(super) options: &'a Options,
    pub(super) accuracy: Vec<Option<f64>>,
}

impl Round<'_> {
    /// Eq. 1 for every item with a voter whose weight changed. Only items whose label changes touch
    /// the agreement counts, so a late round reads little. Returns how many labels changed.
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
        // Other tie policies look at more than the weights.
        let dirty: Vec<bool> = match self.options.ties {
            Ties::Lowest => {
                state.weights.iter().zip(weights).map(|(old, new)| old != new).collect()
            }
            _ => Vec::new(),
        };
        let stale = |item: usize| {
            dirty.is_empty()
                || self.votes.worker_codes()[self.votes.range(item)]
                    .iter()
                    .any(|&worker| dirty[worker as usize])
        };
        let changes: Vec<Vec<(u32, Label)>> = state
            .label
            .par_chunks(size)
            .enumerate()
            .map(|(slice, labels)| {
                let mut changes = Vec::new();
                let mut scores = vec![0.0; l];
                for (offset, &old) in labels.iter().enumerate() {
                    let item = slice * size + offset;
                    if !stale(item) {
                        continue;
                    }
                    let new = self.label::<N>(item, weights, &mut scores[..l]);
                    if new != old {
                        changes.push((item as u32, new));
                    }
                }
                changes
            })
            .collect();
        state.weights.clear();
        state.weights.extend_from_slice(weights);
        let mut changed = 0;
        for (item, new) in changes.into_iter().flatten() {
            let old = std::mem::replace(&mut state.label[item as usize], new);
            for (worker, label) in self.votes.of(item as usize) {
                state.agreed[worker] += i64::from(label == new) - i64::from(label == old);
            }
            state.hash ^= position_hash(item, old) ^ position_hash(item, new);
            changed += 1;
        }
        changed
    }

    #[inline]
    fn label<const N: usize>(&self, item: usize, weights: &[f64], scores: &mut [f64]) -> Label {
        let range = self.votes.range(item);
        if let Some(gold) = self.evidence.gold_of(item) {
            return gold;
        }
        if range.is_empty() {
            return MISSING;
        }
        let workers = &self.votes.worker_codes()[range.clone()];
        let labels = &self.votes.label_codes()[range];
        vote::scores_n::<N>(workers, labels, weights, scores);
        let label = vote::argmax(scores);
        if scores[label as usize] <= vote::TIE {
            self.fall_back(workers, labels, weights, scores);
            return self.break_tie(item, scores);
        }
        if self.options.ties == Ties::Lowest { label } else { self.break_tie(item, scores) }
    }

    /// Replaces scores that elect nobody by plain vote counts; see [`AllNegative`].
    #[cold]
    fn fall_back(&self, workers: &[u32], labels: &[Label], weights: &[f64], scores: &mut [f64]) {
        let undecided = vote::tied(scores, vote::TIE, vote::TIE).len() > 1;
        let strict = self.options.all_negative == AllNegative::Majority;
        if undecided || (strict && only_negative(workers, weights)) {
            scores.fill(0.0);
            labels.iter().for_each(|&label| scores[label as usize] += 1.0);
        }
    }

    #[cold]
    pub(super) fn break_tie(&self, item: usize, scores: &[f64]) -> Label {
        let tied = vote::tied(scores, vote::TIE, vote::TIE);
        if tied.len() == 1 {
            return tied[0];
        }
        match self.options.ties {
            Ties::Lowest => tied[0],
            Ties::Random(seed) => {
                let mut draw = Seed::new(seed).stream(&self.votes.items.name(item));
                tied[draw.below(tied.len())]
            }
            Ties::FirstWorker => votes_of_tied(&tied, self.votes.of(item)),
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

/// The tied label voted by the lowest worker; the lowest tied label if nobody voted for one.
fn votes_of_tied(tied: &[Label], votes: impl Iterator<Item = (usize, Label)>) -> Label {
    votes.filter(|(_, label)| tied.contains(label)).min().map_or(tied[0], |(_, label)| label)
}

/// Every voter has a weight ≤ 0.
#[inline]
fn only_negative(workers: &[u32], weights: &[f64]) -> bool {
    workers.iter().all(|&worker| weights[worker as usize] <= 0.0)
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
    let round = Round { votes, evidence, options, accuracy };
    let mut scores = vec![0.0; items * l];
    let mut label = vec![MISSING; items];
    let mut fallbacks = Vec::new();
    let mut ties = 0;
    for item in 0..items {
        let row = &mut scores[item * l..(item + 1) * l];
        label[item] = round.label::<0>(item, &weights, row);
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
