//! Iterative weighted majority vote (Algorithm 1).

use std::collections::HashSet;

use common::rng::Seed;

use super::slots::{Slice, Slots};
use super::{AllNegative, Cardinality, Consensus, Evidence, Method, Options, Ties, Warning};
use crate::model::{clones, vote};
use crate::votes::{Label, MISSING, Votes};

/// Algorithm 1: Eq. 1, 2 and 3 in turn until no label changes.
pub(super) fn iterative_weighted_vote(
    votes: &Votes,
    method: Method,
    evidence: &Evidence,
    options: &Options,
) -> Consensus {
    let (workers, l) = (votes.workers.len(), votes.labels.len());
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
    let mut state = VoteState::new(votes, totals);
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

/// Labels of the last round and what follows from them; labels and bounds are by slot.
///
/// Most labels cannot change in a late round, and those items are not scored again. With margin
/// m_j = top score − next score, a label stays as long as Σ_{i on j} |change of v_i| < m_j. Let
/// D = max_i |change of v_i| · √T_i, summed over the rounds since item j was scored; then that sum
/// is at most D · Σ_{i on j} 1/√T_i. An item is scored again only once D reaches
/// m_j / Σ_i 1/√T_i. (Any positive numbers in place of 1/√T_i would be right; accuracies of
/// workers with few votes move most, roughly like these.)
struct VoteState<'a> {
    slots: Slots<'a>,
    label: Vec<Label>,
    /// 1 / Σ_i 1/√T_i over the voters of the item, and the drift up to which its label is certain.
    bounds: Vec<Bound>,
    /// D, summed over all rounds so far.
    drift: f64,
    /// √T_i per worker.
    root: Vec<f64>,
    /// 1/√T_i per worker.
    inverse: Vec<f64>,
    /// Votes per worker that agree with `label`.
    agreed: Vec<i64>,
    /// Hash of how the labels differ from those of the first round.
    hash: u64,
    /// Weights of the round before; empty before the first.
    weights: Vec<f64>,
}

#[derive(Clone, Copy)]
struct Bound {
    per_drift: f64,
    certain: f64,
}

impl<'a> VoteState<'a> {
    fn new(votes: &'a Votes, totals: &[usize]) -> Self {
        let slots = Slots::new(votes, 0);
        let root: Vec<f64> = totals.iter().map(|&n| (n as f64).sqrt()).collect();
        Self {
            label: vec![MISSING; slots.len()],
            bounds: vec![Bound { per_drift: 0.0, certain: f64::NEG_INFINITY }; slots.len()],
            drift: 0.0,
            inverse: root.iter().map(|r| 1.0 / r).collect(),
            root,
            agreed: vec![0; totals.len()],
            hash: 0,
            weights: Vec::new(),
            slots,
        }
    }
}

pub(super) struct Round<'a> {
    pub(super) votes: &'a Votes,
    pub(super) evidence: &'a Evidence,
    pub(super) options: &'a Options,
    pub(super) accuracy: Vec<Option<f64>>,
}

impl Round<'_> {
    /// Eq. 1 for every item whose label may change, and Eq. 2's counts. Returns how many labels
    /// changed.
    fn vote(&self, weights: &[f64], state: &mut VoteState<'_>) -> usize {
        match self.votes.labels.len() {
            2 => self.vote_n::<2>(weights, state),
            3 => self.vote_n::<3>(weights, state),
            4 => self.vote_n::<4>(weights, state),
            5 => self.vote_n::<5>(weights, state),
            6 => self.vote_n::<6>(weights, state),
            7 => self.vote_n::<7>(weights, state),
            8 => self.vote_n::<8>(weights, state),
            _ => self.vote_n::<0>(weights, state),
        }
    }

    fn vote_n<const N: usize>(&self, weights: &[f64], state: &mut VoteState<'_>) -> usize {
        let poll = Poll::new(self, weights);
        let first = state.weights.is_empty();
        let moved = |(i, new): (usize, &f64)| (new - state.weights[i]).abs() * state.root[i];
        if !first {
            state.drift += weights.iter().enumerate().map(moved).fold(0.0, f64::max);
        }
        state.weights.clear();
        state.weights.extend_from_slice(weights);
        let mut bounds = std::mem::take(&mut state.bounds);
        if first {
            let parts = state
                .slots
                .pass(&mut bounds, 1, |slice, bounds| poll.first::<N>(state, slice, bounds));
            state.bounds = bounds;
            state.label.clear();
            for (labels, agreed) in parts {
                state.label.extend(labels);
                state.agreed.iter_mut().zip(agreed).for_each(|(a, b)| *a += b);
            }
            return state.label.len();
        }
        let changes = state
            .slots
            .pass(&mut bounds, 1, |slice, bounds| poll.changes::<N>(state, slice, bounds));
        state.bounds = bounds;
        let mut changed = 0;
        for (slot, new) in changes.into_iter().flatten() {
            let old = std::mem::replace(&mut state.label[slot as usize], new);
            let item = state.slots.item[slot as usize];
            for (worker, label) in self.votes.of(item as usize) {
                state.agreed[worker] += i64::from(label == new) - i64::from(label == old);
            }
            state.hash ^= position_hash(item, old) ^ position_hash(item, new);
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

/// One round's vote on slots.
struct Poll<'a> {
    round: &'a Round<'a>,
    weights: &'a [f64],
    /// (−v_i, v_i), for two labels.
    signed: Vec<[f64; 2]>,
    /// max |v_i|.
    largest: f64,
    /// Equal scores elect the lowest label, whatever else: no gold, no other tie rule, no fallback.
    plain: bool,
    /// A label depends on more than the order of the scores.
    strict: bool,
}

impl<'a> Poll<'a> {
    fn new(round: &'a Round<'a>, weights: &'a [f64]) -> Self {
        let strict =
            round.options.all_negative == AllNegative::Majority || !round.evidence.gold.is_empty();
        let positive = weights.iter().all(|&v| v > vote::TIE);
        Self {
            round,
            weights,
            signed: weights.iter().map(|&v| [-v, v]).collect(),
            largest: weights.iter().fold(0.0, |top, v| top.max(v.abs())),
            plain: positive && !strict && round.options.ties == Ties::Lowest,
            strict,
        }
    }

    /// The label of a slot, and the margin that rounding and tie rules leave of its lead: it may be
    /// used up before the label can change.
    #[inline]
    fn elect<const N: usize>(
        &self,
        slots: &Slots<'_>,
        (slot, workers, labels): (usize, &[u32], &[Label]),
        scores: &mut [f64],
    ) -> (Label, f64) {
        let (label, lead) = if N == 2 {
            vote::elect_of_two(workers, labels, &self.signed)
        } else {
            vote::elect::<N>(workers, labels, self.weights, scores)
        };
        // Rounding can't reach this lead.
        let close = 1e-9 * (1.0 + self.largest * labels.len() as f64);
        let exact_tie = lead == 0.0 && self.plain;
        if (lead <= close && !exact_tie) || self.strict {
            let label = self.round.label(slots.item[slot] as usize, self.weights, scores);
            return (label, f64::NEG_INFINITY);
        }
        (label, lead - close)
    }

    /// Labels of all slots of a slice, and agreement per worker; prepares the bounds.
    fn first<const N: usize>(
        &self,
        state: &VoteState<'_>,
        slice: &Slice,
        bounds: &mut [Bound],
    ) -> (Vec<Label>, Vec<i64>) {
        let mut scores = vec![0.0; self.round.votes.labels.len()];
        let mut agreed = vec![0; self.weights.len()];
        let mut elected = Vec::with_capacity(bounds.len());
        let mut bounds = bounds.iter_mut();
        for run in &slice.runs {
            for (of_slot, bound) in state.slots.of(run).zip(&mut bounds) {
                let (label, _) = self.elect::<N>(&state.slots, of_slot, &mut scores);
                let (_, workers, labels) = of_slot;
                let mut spread = 0.0;
                for (&worker, &vote) in workers.iter().zip(labels) {
                    agreed[worker as usize] += i64::from(vote == label);
                    spread += state.inverse[worker as usize];
                }
                bound.per_drift = 1.0 / spread;
                elected.push(label);
            }
        }
        (elected, agreed)
    }

    /// (slot, new label) of the slots of a slice that get another label.
    fn changes<const N: usize>(
        &self,
        state: &VoteState<'_>,
        slice: &Slice,
        bounds: &mut [Bound],
    ) -> Vec<(u32, Label)> {
        let mut scores = vec![0.0; self.round.votes.labels.len()];
        let mut stale: Vec<u32> = vec![0; bounds.len()];
        let mut changes = Vec::new();
        for run in &slice.runs {
            let from = run.slots.start - slice.slots.start;
            let bounds = &mut bounds[from..from + run.slots.len()];
            // Without a branch: whether an item is stale is as good as random.
            let mut count = 0;
            for (offset, bound) in bounds.iter().enumerate() {
                stale[count] = offset as u32;
                count += usize::from(bound.certain < state.drift);
            }
            for &offset in &stale[..count] {
                let (workers, labels) = state.slots.at(run, offset as usize);
                let slot = run.slots.start + offset as usize;
                let of_slot = (slot, workers, labels);
                let (label, margin) = self.elect::<N>(&state.slots, of_slot, &mut scores);
                let bound = &mut bounds[offset as usize];
                bound.certain = state.drift + margin * bound.per_drift;
                if label != state.label[slot] {
                    changes.push((slot as u32, label));
                }
            }
        }
        changes
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

/// Eq. 1 for all items.
fn score_items<const N: usize>(votes: &Votes, weights: &[f64], scores: &mut [f64]) {
    for (item, row) in scores.chunks_exact_mut(votes.labels.len().max(1)).enumerate() {
        let range = votes.range(item);
        let workers = &votes.worker_codes()[range.clone()];
        vote::scores_n::<N>(workers, &votes.label_codes()[range], weights, row);
    }
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
    match l {
        2 => score_items::<2>(votes, &weights, &mut scores),
        3 => score_items::<3>(votes, &weights, &mut scores),
        4 => score_items::<4>(votes, &weights, &mut scores),
        5 => score_items::<5>(votes, &weights, &mut scores),
        _ => score_items::<0>(votes, &weights, &mut scores),
    }
    let mut label = vec![MISSING; items];
    let mut fallbacks = Vec::new();
    let mut ties = 0;
    let some_negative = weights.iter().any(|&v| v <= 0.0);
    let strict = options.all_negative == AllNegative::Majority;
    for (item, row) in scores.chunks_exact_mut(l.max(1)).enumerate() {
        let range = votes.range(item);
        let gold = evidence.gold_of(item);
        if range.is_empty() {
            label[item] = gold.unwrap_or(MISSING);
            continue;
        }
        if let Some(gold) = gold {
            label[item] = gold;
            continue;
        }
        let (elected, top, next) = vote::top_two(row);
        label[item] = elected;
        if next >= top - vote::TIE * (1.0 + top.abs()) || top <= vote::TIE || strict {
            label[item] = round.label(item, &weights, row);
            ties += usize::from(vote::tied(row, vote::TIE, vote::TIE).len() > 1);
        }
        if some_negative && only_negative(&votes.worker_codes()[range], &weights) {
            fallbacks.push(item as u32);
        }
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
