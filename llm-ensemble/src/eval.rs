//! Evaluation: accuracy in expectation over ties, the AE-110k protocol, calibrated confidence,
//! and what each labeler is worth.

use common::Result;
use serde::Serialize;

use crate::model::{bound, clones, vote};
use crate::train::{Consensus, Evidence, Method, Options, fit, probabilities};
use crate::votes::{Label, Votes};

/// Scores within 1e-12 + 1e-5 · |top| of the top score count as tied when judged.
const TIE: (f64, f64) = (1e-12, 1e-5);

/// Expected credit of one item when ties are broken uniformly: 1/m if `gold` is among the m labels
/// of the highest score, else 0.
pub fn credit(scores: &[f64], gold: Label) -> f64 {
    let tied = vote::tied(scores, TIE.0, TIE.1);
    if tied.contains(&gold) { 1.0 / tied.len() as f64 } else { 0.0 }
}

/// [`credit`] per item; `None` without gold. An item without votes gets 0. `gold` has one entry per
/// item.
pub fn correctness(consensus: &Consensus, gold: &[Option<Label>]) -> Vec<Option<f64>> {
    gold.iter()
        .enumerate()
        .map(|(item, gold)| {
            let known = (*gold)?;
            let answered = consensus.label[item] != crate::votes::MISSING;
            Some(if answered { credit(consensus.scores_of(item), known) } else { 0.0 })
        })
        .collect()
}

/// Mean of [`correctness`]: accuracy in expectation over ties, 0 to 1; NaN without gold.
pub fn accuracy(consensus: &Consensus, gold: &[Option<Label>]) -> f64 {
    let credits: Vec<f64> = correctness(consensus, gold).into_iter().flatten().collect();
    credits.iter().sum::<f64>() / credits.len() as f64
}

/// Each worker's own accuracy on the items with gold; `None` without such votes.
pub fn worker_accuracy(votes: &Votes, gold: &[Option<Label>]) -> Vec<Option<f64>> {
    let mut counts = vec![(0.0, 0.0); votes.workers.len()];
    for (item, gold) in gold.iter().enumerate() {
        let Some(gold) = gold else { continue };
        for (worker, label) in votes.of(item) {
            counts[worker].0 += f64::from(u8::from(label == *gold));
            counts[worker].1 += 1.0;
        }
    }
    counts.into_iter().map(|(right, n)| (n > 0.0).then(|| right / n)).collect()
}

/// Counts of ExtractGPT's protocol over (product, attribute) pairs. Counts may be fractions when
/// ties are taken in expectation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ValueCounts {
    /// Correct value.
    pub vc: f64,
    /// Wrong value.
    pub vw: f64,
    /// Gold has a value, predicted "n/a".
    pub vn: f64,
    /// Gold is "n/a", predicted a value.
    pub nv: f64,
    /// Both "n/a".
    pub nn: f64,
}

impl ValueCounts {
    /// Adds a prediction with a weight. `gold` lists the accepted values; "n/a" alone means that the
    /// attribute is absent. A predicted "n/a" is never a correct value.
    pub fn add(&mut self, predicted: &str, gold: &[String], weight: f64) {
        let absent = gold.len() == 1 && gold[0] == NOT_APPLICABLE;
        let count = match (absent, predicted == NOT_APPLICABLE) {
            (true, true) => &mut self.nn,
            (true, false) => &mut self.nv,
            (false, true) => &mut self.vn,
            (false, false) if gold.iter().any(|value| value == predicted) => &mut self.vc,
            (false, false) => &mut self.vw,
        };
        *count += weight;
    }

    /// P = VC / (NV + VC + VW).
    pub fn precision(&self) -> f64 {
        self.vc / (self.nv + self.vc + self.vw)
    }

    /// R = VC / (VN + VC + VW).
    pub fn recall(&self) -> f64 {
        self.vc / (self.vn + self.vc + self.vw)
    }

    /// Micro-averaged F1 = 2PR / (P + R).
    pub fn f1(&self) -> f64 {
        let (p, r) = (self.precision(), self.recall());
        2.0 * p * r / (p + r)
    }

    /// (VC + NN) / all.
    pub fn accuracy(&self) -> f64 {
        (self.vc + self.nn) / (self.vc + self.vw + self.vn + self.nv + self.nn)
    }
}

/// The value that says "attribute absent".
pub const NOT_APPLICABLE: &str = "n/a";

/// Probabilities after calibration.
#[derive(Debug, Clone)]
pub struct Calibrated {
    /// Exponent τ: p ∝ p₀^τ. Below 1 the posterior was overconfident.
    pub exponent: f64,
    /// Probability per item and label.
    pub probabilities: Vec<f64>,
}

impl Calibrated {
    /// Probability of the item's most likely label; 0 for an item without votes.
    pub fn confidence(&self, item: usize, labels: usize) -> f64 {
        self.probabilities[item * labels..(item + 1) * labels].iter().fold(0.0, |a, &b| a.max(b))
    }
}

/// Scales the log-posterior by one exponent τ in 0.01 to 2.
///
/// With gold, τ minimises the log loss of the gold items. Without, it maximises the likelihood of
/// every vote given the others' posterior (each vote divided out of the posterior and predicted by
/// its worker's accuracy): workers that err together make a posterior too sure of itself, and it
/// then predicts held-out votes badly.
pub fn calibrate(votes: &Votes, consensus: &Consensus, gold: &[Option<Label>]) -> Calibrated {
    calibrate_posterior(votes, consensus, &probabilities(votes, consensus), gold)
}

/// [`calibrate`] for given probabilities (items × L) in place of [`probabilities`].
pub fn calibrate_posterior(
    votes: &Votes,
    consensus: &Consensus,
    posterior: &[f64],
    gold: &[Option<Label>],
) -> Calibrated {
    let l = consensus.labels;
    let log_posterior: Vec<f64> = posterior.iter().map(|p| p.max(1e-300).ln()).collect();
    let has_gold = gold.iter().any(Option::is_some);
    let loss = |exponent: f64| {
        if has_gold {
            gold_loss(&log_posterior, l, gold, exponent)
        } else {
            held_out_loss(votes, consensus, &log_posterior, exponent)
        }
    };
    let exponent = golden_section(loss, 0.01, 2.0);
    let mut probabilities = log_posterior;
    for row in probabilities.chunks_mut(l.max(1)) {
        row.iter_mut().for_each(|p| *p *= exponent);
        crate::model::confusion::normalise_log(row);
    }
    for item in 0..votes.items.len() {
        if votes.range(item).is_empty() {
            probabilities[item * l..(item + 1) * l].fill(0.0);
        }
    }
    Calibrated { exponent, probabilities }
}

fn gold_loss(log_posterior: &[f64], l: usize, gold: &[Option<Label>], exponent: f64) -> f64 {
    let mut loss = 0.0;
    for (item, gold) in gold.iter().enumerate() {
        if let Some(gold) = gold {
            let row = &log_posterior[item * l..(item + 1) * l];
            loss += log_sum(row, exponent) - exponent * row[*gold as usize];
        }
    }
    loss
}

fn held_out_loss(
    votes: &Votes,
    consensus: &Consensus,
    log_posterior: &[f64],
    exponent: f64,
) -> f64 {
    let l = consensus.labels;
    let others = l.saturating_sub(1).max(1) as f64;
    let mut loss = 0.0;
    let mut rest = vec![0.0; l];
    for item in 0..votes.items.len() {
        if votes.range(item).len() < 2 {
            continue;
        }
        for (worker, label) in votes.of(item) {
            let Some(w) = consensus.accuracy[worker] else { continue };
            let w = w.clamp(vote::CLIP, 1.0 - vote::CLIP);
            rest.copy_from_slice(&log_posterior[item * l..(item + 1) * l]);
            rest[label as usize] -= w.ln() - ((1.0 - w) / others).ln();
            rest.iter_mut().for_each(|p| *p *= exponent);
            crate::model::confusion::normalise_log(&mut rest);
            let right = rest[label as usize];
            loss -= (right * w + (1.0 - right) * (1.0 - w) / others).max(1e-300).ln();
        }
    }
    loss
}

fn log_sum(row: &[f64], exponent: f64) -> f64 {
    let top = row.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b)) * exponent;
    top + row.iter().map(|v| (v * exponent - top).exp()).sum::<f64>().ln()
}

/// The minimum of a unimodal function on an interval, to 1e-3.
fn golden_section(f: impl Fn(f64) -> f64, low: f64, high: f64) -> f64 {
    const RATIO: f64 = 0.618_033_988_749_894_8;
    let (mut a, mut b) = (low, high);
    let (mut c, mut d) = (b - RATIO * (b - a), a + RATIO * (b - a));
    let (mut at_c, mut at_d) = (f(c), f(d));
    while b - a > 1e-3 {
        if at_c <= at_d {
            (b, d, at_d) = (d, c, at_c);
            c = b - RATIO * (b - a);
            at_c = f(c);
        } else {
            (a, c, at_c) = (c, d, at_d);
            d = a + RATIO * (b - a);
            at_d = f(d);
        }
    }
    0.5 * (a + b)
}

/// Which workers are near-copies, and how many independent ones they are worth.
#[derive(Debug, Clone)]
pub struct CloneReport {
    /// Every pair that met on an item, by (first, second).
    pub pairs: Vec<clones::Pair>,
    /// Share of each worker's vote that is its own: 1 / (1 + Σ excess agreement).
    pub discounts: Vec<f64>,
    /// Σ of the discounts.
    pub effective_workers: f64,
}

/// Pairwise agreement beyond what the estimated accuracies explain.
pub fn clone_report(votes: &Votes, consensus: &Consensus) -> CloneReport {
    let counts = clones::pair_counts(votes);
    let pairs = clones::pairs(&counts, &consensus.accuracy, consensus.labels);
    let discounts = clones::discounts(&counts, &consensus.accuracy, consensus.labels);
    let effective_workers = clones::effective_workers(&discounts, &consensus.accuracy);
    CloneReport { pairs, discounts, effective_workers }
}

/// Eq. 5 with estimated accuracies, the weights used, and the observed answer rate.
pub fn error_bound(votes: &Votes, consensus: &Consensus) -> f64 {
    let known: Vec<(f64, f64)> = consensus
        .accuracy
        .iter()
        .zip(&consensus.weights)
        .filter_map(|(w, v)| w.map(|w| (w, *v)))
        .collect();
    let (accuracies, weights): (Vec<f64>, Vec<f64>) = known.into_iter().unzip();
    let pairs = votes.items.len() * accuracies.len();
    let observed = votes.len() as f64 / pairs.max(1) as f64;
    bound::error_bound(&accuracies, &weights, consensus.labels, observed.min(1.0))
}

/// What dropping one labeler would save and cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DroppedWorker {
    /// The worker.
    pub worker: String,
    /// Votes (calls) saved.
    pub votes_saved: usize,
    /// Share of items whose label stays the same.
    pub same_labels: f64,
    /// Accuracy with all workers minus without this one, on the gold items; `None` without gold.
    pub accuracy_lost: Option<f64>,
}

/// Refits without each worker in turn, cheapest loss first.
///
/// # Errors
/// As [`fit`].
pub fn label_cost(
    votes: &Votes,
    method: Method,
    options: &Options,
    gold: &[Option<Label>],
) -> Result<Vec<DroppedWorker>> {
    let none = Evidence::default();
    let all = fit(votes, method, &none, options)?;
    let totals = votes.votes_per_worker();
    let mut report = Vec::with_capacity(totals.len());
    for (worker, &votes_saved) in totals.iter().enumerate() {
        let rest = fit(&votes.without_worker(worker), method, &none, options)?;
        let same = all.label.iter().zip(&rest.label).filter(|(a, b)| a == b).count();
        let accuracy_lost =
            gold.iter().any(Option::is_some).then(|| accuracy(&all, gold) - accuracy(&rest, gold));
        report.push(DroppedWorker {
            worker: votes.workers.name(worker),
            votes_saved,
            same_labels: same as f64 / all.label.len().max(1) as f64,
            accuracy_lost,
        });
    }
    report.sort_by(|a, b| {
        let key = |d: &DroppedWorker| d.accuracy_lost.unwrap_or(1.0 - d.same_labels);
        key(a).total_cmp(&key(b)).then_with(|| a.worker.cmp(&b.worker))
    });
    Ok(report)
}
