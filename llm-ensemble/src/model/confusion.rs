//! Confusion matrices of workers (Eq. 7–8; Dawid & Skene 1979).
//!
//! Tables are laid out `[worker][voted label l][true label k]`, so that a vote touches L
//! neighbouring numbers in either step.

use crate::votes::Label;

/// Below this the running products of [`e_step`] are rescaled.
const SMALL: f64 = 1e-100;

/// Eq. 7, one worker: C\[k, l\] = (α B\[k, l\] L + Σ_j μ_j(k) 1\[W_ij = l\]) / (L α + Σ_j T_ij μ_j(k)).
///
/// `counts` and `out` are L × L, voted label first. With `base` = `None`, B is uniform (1 / L),
/// which is Dawid–Skene's smoothing by α per cell; otherwise `base` holds B\[k, l\] in the same
/// layout, and the row is shrunk towards it with `alpha`·L pseudo-votes.
pub fn m_step(counts: &[f64], labels: usize, alpha: f64, base: Option<&[f64]>, out: &mut [f64]) {
    let strength = alpha * labels as f64;
    for k in 0..labels {
        let total: f64 = (0..labels).map(|l| counts[l * labels + k]).sum();
        let scale = 1.0 / (strength + total);
        for l in 0..labels {
            let at = l * labels + k;
            let pseudo = base.map_or(alpha, |b| strength * b[at]);
            out[at] = (pseudo + counts[at]) * scale;
        }
    }
}

/// Eq. 8, one item: μ_j(k) ∝ π_k · Π_{i: T_ij = 1} C_i\[k, W_ij\], written into `joint` (one per
/// label, sum 1). Returns ln P(votes of the item).
///
/// Products are rescaled whenever they become small, which equals the log-sum-exp form without
/// its logarithms and exponentials. `N` = L unrolls the loops; 0 takes L from `joint`.
#[inline]
pub fn e_step<const N: usize>(
    workers: &[u32],
    labels: &[Label],
    prior: &[f64],
    confusion: &[f64],
    joint: &mut [f64],
) -> f64 {
    let l = if N == 0 { joint.len() } else { N };
    let joint = &mut joint[..l];
    joint.copy_from_slice(&prior[..l]);
    let mut log_scale = 0.0;
    for (workers, labels) in workers.chunks(8).zip(labels.chunks(8)) {
        for (&worker, &label) in workers.iter().zip(labels) {
            let at = (worker as usize * l + label as usize) * l;
            for (p, c) in joint.iter_mut().zip(&confusion[at..at + l]) {
                *p *= c;
            }
        }
        let top = joint.iter().fold(0.0_f64, |a, &b| if b > a { b } else { a });
        if top < SMALL {
            let scale = 1.0 / top.max(f64::MIN_POSITIVE);
            joint.iter_mut().for_each(|p| *p *= scale);
            log_scale -= scale.ln();
        }
    }
    let total: f64 = joint.iter().sum();
    let inverse = 1.0 / total;
    joint.iter_mut().for_each(|p| *p *= inverse);
    total.ln() + log_scale
}

/// Eq. 8 with one coin per worker: C_i = w_i on the diagonal, (1 − w_i) / (L − 1) elsewhere, given as
/// `log_wrong` = ln((1 − w_i) / (L − 1)) and `log_odds` = ln w_i − `log_wrong`. Returns ln P(votes of
/// the item).
pub fn e_step_one_coin(
    workers: &[u32],
    labels: &[Label],
    log_prior: &[f64],
    log_odds: &[f64],
    log_wrong: &[f64],
    joint: &mut [f64],
) -> f64 {
    let mut evidence = 0.0;
    joint.copy_from_slice(log_prior);
    for (&worker, &label) in workers.iter().zip(labels) {
        joint[label as usize] += log_odds[worker as usize];
        evidence += log_wrong[worker as usize];
    }
    evidence + normalise_log(joint)
}

/// Turns log weights into probabilities; returns the log of their sum.
pub fn normalise_log(values: &mut [f64]) -> f64 {
    let top = values.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    if top == f64::NEG_INFINITY {
        let uniform = 1.0 / values.len() as f64;
        values.fill(uniform);
        return top;
    }
    let mut total = 0.0;
    for value in values.iter_mut() {
        *value = (*value - top).exp();
        total += *value;
    }
    values.iter_mut().for_each(|value| *value /= total);
    top + total.ln()
}
