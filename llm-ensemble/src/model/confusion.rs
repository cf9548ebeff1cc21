//! Confusion matrices of workers (Eq. 7–8; Dawid & Skene 1979).
//!
//! Tables are laid out `[worker][voted label l][true label k]`, so that a vote touches L
//! neighbouring numbers in either step.

use super::shrink::digamma;
use crate::votes::Label;

/// Below this the running products of [`e_step`] are rescaled.
const SMALL: f64 = 1e-100;

/// Eq. 7, one worker: C\[k, l\] = (α + Σ_j μ_j(k) 1\[W_ij = l\]) / (L α + Σ_j T_ij μ_j(k)).
///
/// `counts` and `out` are L × L, voted label first.
pub fn m_step(counts: &[f64], labels: usize, alpha: f64, out: &mut [f64]) {
    for k in 0..labels {
        let total: f64 = (0..labels).map(|l| counts[l * labels + k]).sum();
        let scale = 1.0 / (alpha * labels as f64 + total);
        for l in 0..labels {
            let at = l * labels + k;
            out[at] = (alpha + counts[at]) * scale;
        }
    }
}

/// Eq. 7 with a base distribution in place of α: C\[r, l\] = (s_r B\[r, l\] + n_rl) / (s_r + n_r).
///
/// Tables are L × R, voted label first; `strengths` holds s_r, one per component r.
pub fn m_step_shrunk(counts: &[f64], base: &[f64], strengths: &[f64], out: &mut [f64]) {
    let r = strengths.len();
    for (component, &strength) in strengths.iter().enumerate() {
        let total: f64 = counts.iter().skip(component).step_by(r).sum();
        let scale = 1.0 / (strength + total);
        for at in (component..counts.len()).step_by(r) {
            out[at] = (strength * base[at] + counts[at]) * scale;
        }
    }
}

/// Prior votes of a confusion cell: 4 on the diagonal (`own`), 1 elsewhere, as in EBCC.
pub fn row_prior(own: bool) -> f64 {
    if own { 4.0 } else { 1.0 }
}

/// Eq. 7 as a variational update: exp E\[ln C\[r, l\]\] under Dirichlet(n_rl + β) with β from
/// [`row_prior`]. Rows sum to less than 1.
pub fn m_step_variational(
    counts: &[f64],
    components: usize,
    label_of: impl Fn(usize) -> usize,
    out: &mut [f64],
) {
    for component in 0..components {
        let own = label_of(component) * components + component;
        let beta = |at: usize| row_prior(at == own);
        let cells = (component..counts.len()).step_by(components);
        let total: f64 = cells.clone().map(|at| counts[at] + beta(at)).sum();
        let log_total = digamma(total);
        for at in cells {
            out[at] = (digamma(counts[at] + beta(at)) - log_total).exp();
        }
    }
}

/// Eq. 8, one item: μ_j(k) ∝ π_k · Π_{i: T_ij = 1} C_i\[k, W_ij\], written into `joint` (one per
/// component, which is a label or a subtype of one; sum 1). Returns ln P(votes of the item).
///
/// `confusion` is `[worker][voted label][component]` with `label_count` voted labels.
/// Products are rescaled whenever they become small, which equals the log-sum-exp form without
/// its logarithms and exponentials. `N` components unroll the loops; 0 takes their number from `joint`.
#[inline]
pub fn e_step<const N: usize>(
    workers: &[u32],
    labels: &[Label],
    label_count: usize,
    prior: &[f64],
    confusion: &[f64],
    joint: &mut [f64],
) -> f64 {
    let width = if N == 0 { joint.len() } else { N };
    let joint = &mut joint[..width];
    joint.copy_from_slice(&prior[..width]);
    let mut log_scale = 0.0;
    for (workers, labels) in workers.chunks(8).zip(labels.chunks(8)) {
        for (&worker, &label) in workers.iter().zip(labels) {
            let at = (worker as usize * label_count + label as usize) * width;
            for (p, c) in joint.iter_mut().zip(&confusion[at..at + width]) {
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
