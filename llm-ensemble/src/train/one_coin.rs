//! One accuracy per worker: EM over a closed label set, over the answers of each item, and the
//! posterior behind a vote.

use super::em::{class_prior, silent_gold, vote_shares};
use super::slots::{Slice, Slots};
use super::{
    Confusions, Consensus, EmReport, Evidence, Method, Options, Warning, posterior_consensus,
};
use crate::model::{confusion, shrink, vote};
use crate::votes::{Label, MISSING, Votes};

/// Dawid–Skene with C_i = w_i on the diagonal and (1 − w_i) / (L − 1) elsewhere.
pub(super) fn fit(votes: &Votes, evidence: &Evidence, options: &Options) -> Consensus {
    let (workers, l) = (votes.workers.len(), votes.labels.len());
    let totals = votes.votes_per_worker();
    let slots = Slots::new(votes, workers);
    let mut posterior = vote_shares(&slots, evidence, l);
    let mut counts = Counts { mass: vec![0.0; l], right: vec![0.0; workers] };
    let mut partial = vec![counts.clone(); slots.slice_count()];
    let silent = silent_gold(votes, evidence);
    count_first(&slots, &posterior, l, &mut counts);
    silent.iter().for_each(|&(_, gold)| counts.mass[gold as usize] += 1.0);
    let mut history: Vec<f64> = Vec::new();
    let mut warnings = Vec::new();
    let mut accuracy = vec![0.5; workers];
    loop {
        let prior = class_prior(&counts.mass);
        for i in 0..workers {
            let (prior, strength) = evidence.prior_of(i).unwrap_or((0.0, 0.0));
            let total = totals[i] as f64 + strength + l as f64 * options.alpha;
            accuracy[i] = (counts.right[i] + strength * prior + options.alpha) / total;
            if options.flip_guard {
                accuracy[i] = accuracy[i].max(1.0 / l.max(1) as f64);
            }
        }
        let coins = Coins::new(&accuracy, &prior, l);
        let pass = match l {
            2 => expect::<2>,
            3 => expect::<3>,
            4 => expect::<4>,
            5 => expect::<5>,
            6 => expect::<6>,
            7 => expect::<7>,
            8 => expect::<8>,
            _ => expect::<0>,
        };
        let parts = slots.pass_with(&mut posterior, l, &mut partial, |slice, rows, own| {
            pass(&slots, evidence, &coins, slice, rows, own)
        });
        counts.clear();
        partial.iter().for_each(|slice| counts.add_all(slice));
        silent.iter().for_each(|&(_, gold)| counts.mass[gold as usize] += 1.0);
        let wrong: f64 = totals.iter().zip(&coins.log_wrong).map(|(&n, log)| n as f64 * log).sum();
        let likelihood = (wrong + parts.iter().sum::<f64>()) / votes.len().max(1) as f64;
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
    let mut scores = slots.by_item(posterior, l, votes.items.len());
    silent.iter().for_each(|&(item, gold)| scores[item as usize * l + gold as usize] = 1.0);
    let report = report(votes, totals, accuracy, history, warnings);
    posterior_consensus(votes, Method::OneCoin, evidence, options, scores, report)
}

/// Σ_j μ_j(k) per label and Σ_j μ_j(W_ij) per worker.
#[derive(Clone)]
struct Counts {
    mass: Vec<f64>,
    right: Vec<f64>,
}

impl Counts {
    fn clear(&mut self) {
        self.mass.fill(0.0);
        self.right.fill(0.0);
    }

    fn add_all(&mut self, other: &Self) {
        self.mass.iter_mut().zip(&other.mass).for_each(|(a, b)| *a += b);
        self.right.iter_mut().zip(&other.right).for_each(|(a, b)| *a += b);
    }

    #[inline]
    fn add(&mut self, workers: &[u32], labels: &[Label], row: &[f64]) {
        self.mass.iter_mut().zip(row).for_each(|(m, p)| *m += p);
        for (&worker, &label) in workers.iter().zip(labels) {
            self.right[worker as usize] += row[label as usize];
        }
    }
}

fn count_first(slots: &Slots<'_>, posterior: &[f64], l: usize, counts: &mut Counts) {
    for run in slots.runs() {
        for (slot, workers, labels) in slots.of(run) {
            counts.add(workers, labels, &posterior[slot * l..][..l]);
        }
    }
}

/// Eq. 8's factors with one coin per worker.
struct Coins {
    prior: Vec<f64>,
    log_prior: Vec<f64>,
    /// w_i / ((1 − w_i) / (L − 1)).
    odds: Vec<f64>,
    log_odds: Vec<f64>,
    /// ln((1 − w_i) / (L − 1)).
    log_wrong: Vec<f64>,
    /// max_i |ln odds|.
    largest: f64,
}

impl Coins {
    fn new(accuracy: &[f64], prior: &[f64], labels: usize) -> Self {
        let (log_odds, log_wrong) = coin_logs(accuracy, labels);
        Self {
            prior: prior.to_vec(),
            log_prior: prior.iter().map(|p| p.ln()).collect(),
            odds: log_odds.iter().map(|v| v.exp()).collect(),
            largest: log_odds.iter().fold(0.0, |top, v| top.max(v.abs())),
            log_odds,
            log_wrong,
        }
    }
}

/// Eq. 8 on every item of a slice, and the counts of the next Eq. 7. Returns the log-likelihood
/// without its Σ ln((1 − w_i) / (L − 1)) over all votes.
fn expect<const N: usize>(
    slots: &Slots<'_>,
    evidence: &Evidence,
    coins: &Coins,
    slice: &Slice,
    rows: &mut [f64],
    counts: &mut Counts,
) -> f64 {
    // Products of odds stay within e^±300 for as many votes.
    let safe = (300.0 / coins.largest.max(1e-9)) as usize;
    let l = if N == 0 { coins.prior.len() } else { N };
    let gold = !evidence.gold.is_empty();
    counts.clear();
    let mut rows = rows.chunks_exact_mut(l);
    let mut likelihood = confusion::LogLikelihood::default();
    for run in &slice.runs {
        for ((slot, workers, labels), row) in slots.of(run).zip(&mut rows) {
            likelihood.add(if run.length <= safe {
                confusion::e_step_odds::<N>(workers, labels, &coins.prior, &coins.odds, row)
            } else {
                let (prior, odds) = (&coins.log_prior, &coins.log_odds);
                confusion::e_step_log_odds(workers, labels, prior, odds, row)
            });
            if gold && let Some(gold) = evidence.gold_of(slots.item[slot] as usize) {
                row.fill(0.0);
                row[gold as usize] = 1.0;
            }
            counts.add(workers, labels, row);
        }
    }
    likelihood.total()
}

/// The coins of a fit as confusion matrices, with the share of each label as prior.
pub(super) fn confusions(votes: &Votes, consensus: &Consensus) -> Confusions {
    let l = consensus.labels;
    let mut mass = vec![0.0; l];
    for row in consensus.scores.chunks_exact(l.max(1)) {
        mass.iter_mut().zip(row).for_each(|(m, p)| *m += p);
    }
    let mut table = Vec::with_capacity(votes.workers.len() * l * l);
    for accuracy in &consensus.accuracy {
        let w = accuracy.unwrap_or(1.0 / l.max(1) as f64).clamp(1e-9, 1.0 - 1e-9);
        let wrong = (1.0 - w) / l.saturating_sub(1).max(1) as f64;
        table.extend((0..l * l).map(|at| if at % (l + 1) == 0 { w } else { wrong }));
    }
    Confusions { prior: class_prior(&mass), table }
}

/// One-coin EM for open value sets: item j has only the labels that it was given (and those of
/// its label prior), so L_j is their number, and wrong votes spread over the other L_j − 1.
///
/// P(label k of item j) ∝ exp(label_prior) · Π_i (w_i if W_ij = k else (1 − w_i) / (L_j − 1)).
/// One weight per worker for all items, so rare values borrow strength from frequent ones.
pub(super) fn fit_open(votes: &Votes, evidence: &Evidence, options: &Options) -> Consensus {
    const FIRST_ACCURACY: f64 = 0.85;
    const PSEUDO: f64 = 0.5;
    let (workers, l) = (votes.workers.len(), votes.labels.len());
    let totals = votes.votes_per_worker();
    let candidates: Vec<Vec<(Label, f64)>> =
        (0..votes.items.len()).map(|item| item_candidates(votes, evidence, item)).collect();
    let mut accuracy = vec![FIRST_ACCURACY; workers];
    let mut posterior: Vec<Vec<f64>> = Vec::new();
    let mut history: Vec<f64> = Vec::new();
    let mut warnings = Vec::new();
    loop {
        let mut right = vec![0.0; workers];
        let mut likelihood = 0.0;
        posterior.clear();
        for (item, labels) in candidates.iter().enumerate() {
            let others = (labels.len().max(2) - 1) as f64;
            let mut joint: Vec<f64> = labels.iter().map(|&(_, prior)| prior).collect();
            let prior_mass = log_sum(&joint);
            for (worker, label) in votes.of(item) {
                let w = accuracy[worker].clamp(vote::CLIP, 1.0 - vote::CLIP);
                let wrong = ((1.0 - w) / others).ln();
                likelihood += wrong;
                for (p, &(k, _)) in joint.iter_mut().zip(labels) {
                    *p += if k == label { w.ln() - wrong } else { 0.0 };
                }
            }
            if !labels.is_empty() {
                likelihood += confusion::normalise_log(&mut joint) - prior_mass;
            }
            for (worker, label) in votes.of(item) {
                if let Some(at) = labels.iter().position(|&(k, _)| k == label) {
                    right[worker] += joint[at];
                }
            }
            posterior.push(joint);
        }
        for i in 0..workers {
            let (prior, strength) = evidence.prior_of(i).unwrap_or((0.5, 0.0));
            let total = totals[i] as f64 + 2.0 * PSEUDO + strength;
            accuracy[i] = (right[i] + PSEUDO + strength * prior) / total;
        }
        likelihood /= votes.len().max(1) as f64;
        let previous = history.last().copied().unwrap_or(f64::NEG_INFINITY);
        history.push(likelihood);
        if (likelihood - previous).abs() < options.tolerance {
            break;
        }
        if history.len() >= options.max_rounds {
            warnings.push(Warning::RoundLimit);
            break;
        }
    }
    let mut scores = vec![0.0; votes.items.len() * l];
    for (item, labels) in candidates.iter().enumerate() {
        for (&(k, _), p) in labels.iter().zip(&posterior[item]) {
            scores[item * l + k as usize] = *p;
        }
    }
    let report = report(votes, totals, accuracy, history, warnings);
    posterior_consensus(votes, Method::OpenOneCoin, evidence, options, scores, report)
}

/// The labels an item may have, in ascending order, with their log-prior.
fn item_candidates(votes: &Votes, evidence: &Evidence, item: usize) -> Vec<(Label, f64)> {
    if let Some(gold) = evidence.gold_of(item) {
        return vec![(gold, 0.0)];
    }
    let mut labels: Vec<Label> = votes.of(item).map(|(_, label)| label).collect();
    let empty = Vec::new();
    let prior = evidence.label_prior.get(item).unwrap_or(&empty);
    labels.extend(prior.iter().map(|&(label, _)| label));
    labels.sort_unstable();
    labels.dedup();
    labels.retain(|&label| label != MISSING);
    labels
        .into_iter()
        .map(|label| (label, prior.iter().find(|p| p.0 == label).map_or(0.0, |p| p.1)))
        .collect()
}

fn log_sum(values: &[f64]) -> f64 {
    let top = values.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    if values.is_empty() {
        0.0
    } else {
        top + values.iter().map(|v| (v - top).exp()).sum::<f64>().ln()
    }
}

/// The posterior behind a vote: agreement with `label`, shrunk towards the mean of all workers
/// (empirical Bayes), in Eq. 8 with a uniform class prior.
pub(super) fn vote_posterior(votes: &Votes, label: &[Label]) -> Vec<f64> {
    let (workers, l) = (votes.workers.len(), votes.labels.len());
    let mut right = vec![0.0; workers];
    for (item, &expected) in label.iter().enumerate() {
        for (worker, vote) in votes.of(item) {
            right[worker] += f64::from(u8::from(vote == expected));
        }
    }
    let totals: Vec<f64> = votes.votes_per_worker().iter().map(|&n| n as f64).collect();
    let (accuracy, _) = shrink::shrunken_accuracies(&right, &totals, 20);
    let (log_odds, _) = coin_logs(&accuracy, l);
    let prior = vec![-(l.max(1) as f64).ln(); l];
    let mut posterior = vec![0.0; votes.items.len() * l];
    for (item, row) in posterior.chunks_mut(l.max(1)).enumerate() {
        let range = votes.range(item);
        let codes = &votes.worker_codes()[range.clone()];
        confusion::e_step_log_odds(codes, &votes.label_codes()[range], &prior, &log_odds, row);
    }
    posterior
}

/// (ln w − ln((1 − w) / (L − 1)), ln((1 − w) / (L − 1))) per worker.
fn coin_logs(accuracy: &[f64], labels: usize) -> (Vec<f64>, Vec<f64>) {
    let others = labels.saturating_sub(1).max(1) as f64;
    let wrong: Vec<f64> = accuracy.iter().map(|w| ((1.0 - w).max(1e-9) / others).ln()).collect();
    let odds = accuracy.iter().zip(&wrong).map(|(w, wrong)| w.max(1e-9).ln() - wrong).collect();
    (odds, wrong)
}

fn report(
    votes: &Votes,
    totals: &[usize],
    accuracy: Vec<f64>,
    history: Vec<f64>,
    warnings: Vec<Warning>,
) -> EmReport {
    let l = votes.labels.len() as f64;
    let accuracy: Vec<Option<f64>> =
        accuracy.into_iter().zip(totals).map(|(w, &n)| (n > 0).then_some(w)).collect();
    let weights = accuracy.iter().map(|w| w.map_or(0.0, |w| vote::log_odds_weight(l, w))).collect();
    EmReport { weights, accuracy, history, warnings }
}
