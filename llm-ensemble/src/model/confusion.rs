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
/// component, which is a label or a subtype of one; sum 1). Returns P(votes of the item).
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
) -> Mass {
    if N == 0 {
        return e_step_any(workers, labels, label_count, prior, confusion, joint);
    }
    let (table, _) = confusion.as_chunks::<N>();
    let mut product = [0.0; N];
    product.copy_from_slice(&prior[..N]);
    let mut log_scale = 0.0;
    for (at, (&worker, &label)) in workers.iter().zip(labels).enumerate() {
        if at % 8 == 7 {
            log_scale -= rescale(&mut product);
        }
        let row = &table[worker as usize * label_count + label as usize];
        for k in 0..N {
            product[k] *= row[k];
        }
    }
    let mass: f64 = product.iter().sum();
    let inverse = 1.0 / mass;
    for (p, product) in joint.iter_mut().zip(product) {
        *p = product * inverse;
    }
    Mass { mass, log_scale }
}

/// P(votes of an item) = mass · exp(log_scale).
#[derive(Debug, Clone, Copy)]
pub struct Mass {
    /// Sum of the joint probabilities before they were normalised.
    pub mass: f64,
    /// What rescaling took out.
    pub log_scale: f64,
}

fn e_step_any(
    workers: &[u32],
    labels: &[Label],
    label_count: usize,
    prior: &[f64],
    confusion: &[f64],
    joint: &mut [f64],
) -> Mass {
    let width = joint.len();
    joint.copy_from_slice(prior);
    let mut log_scale = 0.0;
    for (at, (&worker, &label)) in workers.iter().zip(labels).enumerate() {
        if at % 8 == 7 {
            log_scale -= rescale(joint);
        }
        let start = (worker as usize * label_count + label as usize) * width;
        for (p, c) in joint.iter_mut().zip(&confusion[start..start + width]) {
            *p *= c;
        }
    }
    let mass: f64 = joint.iter().sum();
    let inverse = 1.0 / mass;
    joint.iter_mut().for_each(|p| *p *= inverse);
    Mass { mass, log_scale }
}

/// Brings small products back to 1 and returns the log of the factor.
#[inline]
fn rescale(products: &mut [f64]) -> f64 {
    let top = products.iter().fold(0.0_f64, |a, &b| if b > a { b } else { a });
    if top >= SMALL {
        return 0.0;
    }
    let factor = 1.0 / top.max(f64::MIN_POSITIVE);
    products.iter_mut().for_each(|p| *p *= factor);
    factor.ln()
}

/// Σ ln P over items, with one logarithm for many items.
#[derive(Debug, Clone, Copy)]
pub struct LogLikelihood {
    sum: f64,
    product: f64,
}

impl Default for LogLikelihood {
    fn default() -> Self {
        Self { sum: 0.0, product: 1.0 }
    }
}

impl LogLikelihood {
    /// Adds one item.
    #[inline]
    pub fn add(&mut self, item: Mass) {
        self.sum += item.log_scale;
        self.product *= item.mass;
        if !(SMALL..=1.0 / SMALL).contains(&self.product) {
            self.sum += self.product.max(f64::MIN_POSITIVE).ln();
            self.product = 1.0;
        }
    }

    /// The sum.
    pub fn total(self) -> f64 {
        self.sum + self.product.ln()
    }
}

/// Eq. 8 with one coin per worker: C_i = w_i on the diagonal, (1 − w_i) / (L − 1) elsewhere, given
/// as `odds` = w_i / ((1 − w_i) / (L − 1)). Returns P(votes of the item) / Π_i (1 − w_i) / (L − 1).
///
/// The product of the odds must stay within 1e±150 or so; `N` ≤ 8 labels keep it in registers, 0
/// takes their number from `joint`.
#[inline]
pub fn e_step_odds<const N: usize>(
    workers: &[u32],
    labels: &[Label],
    prior: &[f64],
    odds: &[f64],
    joint: &mut [f64],
) -> Mass {
    joint.copy_from_slice(prior);
    if N == 0 {
        for (&worker, &label) in workers.iter().zip(labels) {
            joint[label as usize] *= odds[worker as usize];
        }
    } else {
        let mut product = [1.0; 8];
        for (&worker, &label) in workers.iter().zip(labels) {
            product[usize::from(label & 7)] *= odds[worker as usize];
        }
        joint.iter_mut().zip(product).for_each(|(p, product)| *p *= product);
    }
    let mass: f64 = joint.iter().sum();
    let inverse = 1.0 / mass;
    joint.iter_mut().for_each(|p| *p *= inverse);
    Mass { mass, log_scale: 0.0 }
}

/// [`e_step_odds`] from logarithms, for any number of votes.
pub fn e_step_log_odds(
    workers: &[u32],
    labels: &[Label],
    log_prior: &[f64],
    log_odds: &[f64],
    joint: &mut [f64],
) -> Mass {
    joint.copy_from_slice(log_prior);
    for (&worker, &label) in workers.iter().zip(labels) {
        joint[label as usize] += log_odds[worker as usize];
    }
    Mass { mass: 1.0, log_scale: normalise_log(joint) }
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
