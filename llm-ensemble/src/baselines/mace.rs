//! MACE: a worker knows the answer or spams (Hovy, Berg-Kirkpatrick, Vaswani & Hovy 2013).

use common::rng::Seed;

use crate::model::shrink::digamma;
use crate::train::{Consensus, EmReport, Evidence, Method, Options, posterior_consensus};
use crate::votes::Votes;

const RESTARTS: usize = 10;
const ITERATIONS: usize = 50;
/// Beta(0.5, 0.5) over knowing, Dirichlet(10) over the spammer's labels, as in crowd-kit 1.4.2.
const KNOW_PRIOR: f64 = 0.5;
const SPAM_PRIOR: f64 = 10.0;

struct Worker {
    /// P(spams); the rest knows.
    spams: f64,
    knows: f64,
    /// P(label given spamming).
    labels: Vec<f64>,
}

/// P(vote = l given truth k) = spams · θ(l) + knows · 1\[l = k\]: variational EM, 50 iterations, the
/// best of 10 random starts by likelihood. crowd-kit repeats one and the same start, and its
/// spamming distributions go to the wrong workers and labels unless both first appear in ascending
/// order: [`Options::crowd_kit_mace`] reproduces that.
pub fn mace(votes: &Votes, evidence: &Evidence, options: &Options) -> Consensus {
    let mut best: Option<(f64, Vec<Worker>, Vec<f64>)> = None;
    let names = votes.workers.to_vec();
    let mix_up = options.crowd_kit_mace.then(|| MixUp::new(votes));
    for restart in 0..RESTARTS {
        let mut workers: Vec<Worker> = names
            .iter()
            .map(|name| start(options.seed, restart, name, votes.labels.len()))
            .collect();
        let mut posterior = vec![0.0; votes.items.len() * votes.labels.len()];
        let mut likelihood = e_step(votes, evidence, &workers, &mut posterior);
        for _ in 0..ITERATIONS {
            m_step(votes, &posterior, &mut workers);
            if let Some(mix_up) = &mix_up {
                mix_up.apply(&mut workers);
            }
            likelihood = e_step(votes, evidence, &workers, &mut posterior);
        }
        if best.as_ref().is_none_or(|(top, _, _)| likelihood > *top) {
            best = Some((likelihood, workers, posterior));
        }
    }
    let (likelihood, workers, posterior) = best.unwrap_or_default();
    let totals = votes.votes_per_worker();
    let competence: Vec<Option<f64>> = workers
        .iter()
        .zip(totals)
        .map(|(worker, &n)| (n > 0).then_some(worker.knows / (worker.knows + worker.spams)))
        .collect();
    let report = EmReport {
        weights: competence.iter().map(|w| w.unwrap_or(0.0)).collect(),
        accuracy: competence,
        history: vec![likelihood / votes.len().max(1) as f64],
        warnings: Vec::new(),
    };
    let mut result = posterior_consensus(votes, Method::Mace, evidence, options, posterior, report);
    result.rounds = ITERATIONS;
    result
}

/// crowd-kit 1.4.2 stores spamming distributions by ascending worker and label, and reads them by
/// order of first appearance.
struct MixUp {
    /// Worker at each ascending rank.
    workers: Vec<usize>,
    /// Label at each place of first appearance.
    labels: Vec<usize>,
}

impl MixUp {
    fn new(votes: &Votes) -> Self {
        let mut workers: Vec<usize> = (0..votes.workers.len()).collect();
        let names = votes.workers.to_vec();
        let numbers: Option<Vec<i64>> = names.iter().map(|name| name.parse().ok()).collect();
        match numbers {
            Some(numbers) => workers.sort_by_key(|&i| numbers[i]),
            None => workers.sort_by(|&a, &b| names[a].cmp(&names[b])),
        }
        Self { workers, labels: votes.labels_by_appearance().map(usize::from).collect() }
    }

    fn apply(&self, workers: &mut [Worker]) {
        let stored: Vec<Vec<f64>> = workers.iter().map(|w| w.labels.clone()).collect();
        for (place, worker) in workers.iter_mut().enumerate() {
            for (rank, &label) in self.labels.iter().enumerate() {
                worker.labels[label] = stored[self.workers[place]][rank];
            }
        }
    }
}

/// Uniform noise between 1 and 2.5 on every parameter, then normalised.
fn start(seed: u64, restart: usize, name: &str, labels: usize) -> Worker {
    let mut stream = Seed::new(seed).stream(&format!("mace/{restart}/{name}"));
    let mut noise = || 1.0 + 1.5 * stream.uniform();
    let (spams, knows) = (noise(), noise());
    let labels: Vec<f64> = (0..labels).map(|_| noise()).collect();
    let total: f64 = labels.iter().sum();
    Worker {
        spams: spams / (spams + knows),
        knows: knows / (spams + knows),
        labels: labels.iter().map(|p| p / total).collect(),
    }
}

/// Posterior over labels per item; returns the log-likelihood.
fn e_step(votes: &Votes, evidence: &Evidence, workers: &[Worker], posterior: &mut [f64]) -> f64 {
    let l = votes.labels.len();
    let mut likelihood = 0.0;
    for (item, row) in posterior.chunks_mut(l.max(1)).enumerate() {
        if votes.range(item).is_empty() {
            continue;
        }
        row.fill(1.0 / l as f64);
        for (worker, label) in votes.of(item) {
            let worker = &workers[worker];
            let spam = worker.spams * worker.labels[label as usize];
            for (k, p) in row.iter_mut().enumerate() {
                *p *= spam + if k == label as usize { worker.knows } else { 0.0 };
            }
            let top = row.iter().fold(0.0_f64, |a, &b| a.max(b));
            if top < 1e-100 {
                let scale = 1.0 / top.max(f64::MIN_POSITIVE);
                row.iter_mut().for_each(|p| *p *= scale);
                likelihood -= scale.ln();
            }
        }
        let total: f64 = row.iter().sum();
        likelihood += total.ln();
        row.iter_mut().for_each(|p| *p /= total);
        if let Some(gold) = evidence.gold_of(item) {
            row.fill(0.0);
            row[gold as usize] = 1.0;
        }
    }
    likelihood
}

/// Expected counts of spamming (per label) and knowing, normalised by exp ψ.
fn m_step(votes: &Votes, posterior: &[f64], workers: &mut [Worker]) {
    let l = votes.labels.len();
    let mut spammed = vec![0.0; workers.len() * l];
    let mut known = vec![0.0; workers.len()];
    for item in 0..votes.items.len() {
        let row = &posterior[item * l..(item + 1) * l];
        for (worker, label) in votes.of(item) {
            let at = &workers[worker];
            let spam = at.spams * at.labels[label as usize];
            let knowing = row[label as usize] * at.knows / (spam + at.knows);
            known[worker] += knowing;
            spammed[worker * l + label as usize] += 1.0 - knowing;
        }
    }
    for ((worker, spammed), known) in workers.iter_mut().zip(spammed.chunks(l.max(1))).zip(known) {
        let spam_total: f64 = spammed.iter().sum();
        let norm = digamma(spam_total + known + 2.0 * KNOW_PRIOR);
        worker.spams = (digamma(spam_total + KNOW_PRIOR) - norm).exp();
        worker.knows = (digamma(known + KNOW_PRIOR) - norm).exp();
        let norm = digamma(spam_total + SPAM_PRIOR * l as f64);
        for (p, n) in worker.labels.iter_mut().zip(spammed) {
            *p = (digamma(n + SPAM_PRIOR) - norm).exp();
        }
    }
}
