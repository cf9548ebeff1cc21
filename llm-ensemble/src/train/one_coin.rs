//! One accuracy per worker: EM over a closed label set, over the answers of each item, and the
//! posterior behind a vote.

use super::em::{class_prior, vote_shares};
use super::{Consensus, EmReport, Evidence, Method, Options, Warning, posterior_consensus};
use crate::model::{confusion, shrink, vote};
use crate::votes::{Label, MISSING, Votes};

/// Dawid–Skene with C_i = w_i on the diagonal and (1 − w_i) / (L − 1) elsewhere.
pub(super) fn fit(votes: &Votes, evidence: &Evidence, options: &Options) -> Consensus {
    let (workers, l) = (votes.workers.len(), votes.labels.len());
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
        let (log_odds, log_wrong) = coin_logs(&accuracy, l);
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
    let report = report(votes, &totals, accuracy, history, warnings);
    posterior_consensus(votes, Method::OneCoin, evidence, options, posterior, report)
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
    let report = report(votes, &totals, accuracy, history, warnings);
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
    let (log_odds, log_wrong) = coin_logs(&accuracy, l);
    let prior = vec![-(l.max(1) as f64).ln(); l];
    let mut posterior = vec![0.0; votes.items.len() * l];
    for (item, row) in posterior.chunks_mut(l.max(1)).enumerate() {
        let range = votes.range(item);
        let codes = &votes.worker_codes()[range.clone()];
        let labels = &votes.label_codes()[range];
        confusion::e_step_one_coin(codes, labels, &prior, &log_odds, &log_wrong, row);
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
