//! GLAD: P(vote right) = σ(α_i · e^β_j), ability per worker and ease per item (Whitehill et al.
//! 2009), with the priors of crowd-kit 1.4.2: α, β ~ N(1, 1), labels uniform.

use crate::model::confusion::normalise_log;
use crate::train::{Consensus, EmReport, Evidence, Method, Options, posterior_consensus};
use crate::votes::Votes;

const CG_STEPS: usize = 25;
const CG_TOLERANCE: f64 = 1e-2;
const PRIOR_MEAN: f64 = 1.0;

/// EM: Eq. 8 with the vote's own probability of being right; the M step climbs by conjugate
/// gradients (at most 25 steps, gradient below 0.01). Stops when the mean objective gains less
/// than the tolerance.
pub fn glad(votes: &Votes, evidence: &Evidence, options: &Options) -> Consensus {
    let (workers, items, l) = (votes.workers.len(), votes.items.len(), votes.labels.len());
    // Abilities first, then eases.
    let mut x = vec![PRIOR_MEAN; workers + items];
    let mut posterior = vec![0.0; items * l];
    let mut history: Vec<f64> = Vec::new();
    let mut model = Objective { votes, right: vec![0.0; votes.len()] };
    for _ in 0..options.max_rounds {
        e_step(votes, evidence, &x, &mut posterior);
        model.set_posterior(&posterior);
        let value = ascend(&model, &mut x) / (votes.len() * l).max(1) as f64;
        let gain = value - history.last().copied().unwrap_or(f64::NEG_INFINITY);
        history.push(value);
        if gain < options.tolerance {
            break;
        }
    }
    let totals = votes.votes_per_worker();
    let accuracy: Vec<Option<f64>> =
        (0..workers).map(|i| (totals[i] > 0).then(|| sigmoid(x[i] * PRIOR_MEAN.exp()))).collect();
    let report = EmReport {
        weights: (0..workers).map(|i| if totals[i] > 0 { x[i] } else { 0.0 }).collect(),
        accuracy,
        history,
        warnings: Vec::new(),
    };
    posterior_consensus(votes, Method::Glad, evidence, options, posterior, report)
}

fn e_step(votes: &Votes, evidence: &Evidence, x: &[f64], posterior: &mut [f64]) {
    let l = votes.labels.len();
    let (alpha, beta) = x.split_at(votes.workers.len());
    let others = (l.max(2) - 1) as f64;
    for (item, row) in posterior.chunks_mut(l.max(1)).enumerate() {
        if votes.range(item).is_empty() {
            continue;
        }
        row.fill(0.0);
        let ease = beta[item].exp();
        for (worker, label) in votes.of(item) {
            // ln σ(a) − ln(1 − σ(a)) = a
            row[label as usize] += alpha[worker] * ease + others.ln();
        }
        normalise_log(row);
        if let Some(gold) = evidence.gold_of(item) {
            row.fill(0.0);
            row[gold as usize] = 1.0;
        }
    }
}

struct Objective<'a> {
    votes: &'a Votes,
    /// μ_j(W_ij) of every vote.
    right: Vec<f64>,
}

impl Objective<'_> {
    fn set_posterior(&mut self, posterior: &[f64]) {
        let l = self.votes.labels.len();
        for item in 0..self.votes.items.len() {
            for at in self.votes.range(item) {
                self.right[at] = posterior[item * l + self.votes.label_codes()[at] as usize];
            }
        }
    }

    /// Σ over votes of the expected log-likelihood, plus the log-priors, and its gradient.
    fn value(&self, x: &[f64], gradient: &mut [f64]) -> f64 {
        let workers = self.votes.workers.len();
        let (alpha, beta) = x.split_at(workers);
        let others = (self.votes.labels.len().max(2) - 1) as f64;
        let constant = 0.5 * (2.0 * std::f64::consts::PI).ln();
        let mut total = 0.0;
        for (g, v) in gradient.iter_mut().zip(x) {
            *g = PRIOR_MEAN - v;
            total -= (v - PRIOR_MEAN).powi(2) / 2.0 + constant;
        }
        let log_others = others.ln();
        for (item, beta) in beta.iter().enumerate() {
            let ease = beta.exp();
            for at in self.votes.range(item) {
                let worker = self.votes.worker_codes()[at] as usize;
                let a = alpha[worker] * ease;
                let p = self.right[at];
                // One exponential gives ln σ(a), ln(1 − σ(a)) and σ(a).
                let small = (-a.abs()).exp();
                let tail = small.ln_1p();
                total -= p * (tail - a.min(0.0)) + (1.0 - p) * (tail + a.max(0.0) + log_others);
                let sigma = if a >= 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) };
                let slope = (p - sigma) * ease;
                gradient[worker] += slope;
                gradient[workers + item] += slope * alpha[worker];
            }
        }
        total
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A point on the way up: coordinates, objective, gradient.
#[derive(Clone)]
struct Point {
    x: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

impl Point {
    fn at(model: &Objective<'_>, x: Vec<f64>) -> Self {
        let mut gradient = vec![0.0; x.len()];
        let value = model.value(&x, &mut gradient);
        Self { x, value, gradient }
    }
}

/// Polak–Ribière conjugate gradients with a strong Wolfe line search. Returns the objective.
fn ascend(model: &Objective<'_>, x: &mut Vec<f64>) -> f64 {
    let mut here = Point::at(model, std::mem::take(x));
    let mut direction = here.gradient.clone();
    let mut step = 1.0 / dot(&direction, &direction).sqrt().max(1e-12);
    for _ in 0..CG_STEPS {
        if here.gradient.iter().all(|g| g.abs() < CG_TOLERANCE) {
            break;
        }
        if dot(&here.gradient, &direction) <= 0.0 {
            direction.clone_from(&here.gradient);
        }
        let slope = dot(&here.gradient, &direction);
        let Some((length, next)) = line_search(model, &here, &direction, step) else { break };
        let change: Vec<f64> =
            next.gradient.iter().zip(&here.gradient).map(|(a, b)| a - b).collect();
        let beta = dot(&next.gradient, &change) / dot(&here.gradient, &here.gradient);
        direction.iter_mut().zip(&next.gradient).for_each(|(d, g)| *d = g + beta.max(0.0) * *d);
        here = next;
        // The next step should gain about as much as this one to first order.
        step = length * slope / dot(&here.gradient, &direction).max(1e-300);
        step = step.min(1.0);
    }
    *x = here.x;
    here.value
}

/// A step that meets the strong Wolfe conditions (1e-4, 0.4), by bracketing and the secant rule.
fn line_search(
    model: &Objective<'_>,
    from: &Point,
    direction: &[f64],
    step: f64,
) -> Option<(f64, Point)> {
    let start = dot(&from.gradient, direction);
    let (mut low, mut low_slope) = (0.0, start);
    let (mut high, mut high_slope) = (f64::INFINITY, f64::NAN);
    let mut best: Option<(f64, Point)> = None;
    let mut length = step;
    for _ in 0..20 {
        let x = from.x.iter().zip(direction).map(|(x, d)| x + length * d).collect();
        let point = Point::at(model, x);
        let slope = dot(&point.gradient, direction);
        let rises = point.value >= from.value + 1e-4 * length * start;
        let flat = slope.abs() <= 0.4 * start;
        if rises && best.as_ref().is_none_or(|(_, b)| point.value >= b.value) {
            best = Some((length, point));
            if flat {
                break;
            }
        }
        if rises && slope > 0.0 {
            (low, low_slope) = (length, slope);
        } else {
            (high, high_slope) = (length, slope);
        }
        length = if high.is_infinite() {
            4.0 * length
        } else {
            let secant = low + (high - low) * low_slope / (low_slope - high_slope);
            let margin = 0.1 * (high - low);
            if secant.is_finite() {
                secant.clamp(low + margin, high - margin)
            } else {
                0.5 * (low + high)
            }
        };
    }
    best
}

fn sigmoid(a: f64) -> f64 {
    1.0 / (1.0 + (-a).exp())
}
