//! Distributions, exposure and correlation.

use crate::stats::average_ranks;

/// Shannon entropy `−Σ p ln p` in nats, with `0 ln 0 = 0`.
pub fn entropy(p: &[f64]) -> f64 {
    -p.iter().filter(|&&p| p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

/// Kullback–Leibler divergence `Σ p ln(p / q)` in nats. `p = 0` adds nothing; infinite where
/// `q = 0 < p`. Both must sum to 1.
///
/// # Panics
/// When the slices differ in length.
pub fn kl(p: &[f64], q: &[f64]) -> f64 {
    assert_eq!(p.len(), q.len(), "two distributions over the same values");
    p.iter().zip(q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * (p / q).ln()).sum()
}

/// Jensen–Shannon divergence `½ KL(p ‖ m) + ½ KL(q ‖ m)`, `m = (p + q) / 2`, in nats: 0 for equal
/// distributions, ln 2 for disjoint ones. (scipy's `jensenshannon` is its square root.)
///
/// # Panics
/// When the slices differ in length.
pub fn jsd(p: &[f64], q: &[f64]) -> f64 {
    let middle: Vec<f64> = p.iter().zip(q).map(|(p, q)| (p + q) / 2.0).collect();
    // Rounding can take the sum a hair below 0.
    (0.5 * kl(p, &middle) + 0.5 * kl(q, &middle)).max(0.0)
}

/// Gini coefficient of non-negative exposures (one per item of the catalogue, zeros included):
/// `Σ (2i − n − 1) x_(i) / (n Σ x)` over ascending `x`, 0 = all equal, `1 − 1/n` = one item takes
/// all. NaN without items or exposure.
pub fn gini(exposures: &[f64]) -> f64 {
    let mut sorted = exposures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len() as f64;
    let weighted: f64 =
        sorted.iter().enumerate().map(|(index, x)| (2.0 * (index + 1) as f64 - n - 1.0) * x).sum();
    weighted / (n * sorted.iter().sum::<f64>())
}

/// Share of a catalogue of `items` items that occurs in `recommended` (each item counted once).
/// NaN for an empty catalogue.
pub fn coverage<T: Ord>(recommended: impl IntoIterator<Item = T>, items: usize) -> f64 {
    let distinct: std::collections::BTreeSet<T> = recommended.into_iter().collect();
    distinct.len() as f64 / items as f64
}

/// Spearman's rank correlation: Pearson's correlation of the ranks, equal values sharing their
/// mean rank (scipy's `spearmanr`). NaN with fewer than two pairs or when one side is constant.
///
/// # Panics
/// When the slices differ in length.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "two values per pair");
    let (a, b) = (average_ranks(a), average_ranks(b));
    let mean = (a.len() as f64 + 1.0) / 2.0;
    let product = |x: &[f64], y: &[f64]| -> f64 {
        x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum()
    };
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

#[cfg(test)]
mod tests {
    use std::f64::consts::LN_2;

    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn divergences_by_hand() {
        close(kl(&[0.5, 0.5], &[0.25, 0.75]), 0.5 * 2f64.ln() + 0.5 * (2.0f64 / 3.0).ln());
        assert_eq!(kl(&[1.0, 0.0], &[0.0, 1.0]), f64::INFINITY);
        close(jsd(&[1.0, 0.0], &[0.0, 1.0]), LN_2);
        close(jsd(&[0.3, 0.7], &[0.3, 0.7]), 0.0);
        close(entropy(&[0.5, 0.5, 0.0]), LN_2);
    }

    #[test]
    fn exposure_by_hand() {
        close(gini(&[1.0, 1.0, 1.0]), 0.0);
        close(gini(&[0.0, 0.0, 0.0, 5.0]), 0.75);
        close(gini(&[1.0, 3.0]), 0.25);
        assert!(gini(&[0.0, 0.0]).is_nan());
        close(coverage([1, 2, 2, 3], 6), 0.5);
    }

    #[test]
    fn spearman_with_ties_equals_scipy() {
        close(spearman(&[1.0, 2.0, 3.0], &[10.0, 20.0, 15.0]), 0.5);
        // scipy.stats.spearmanr([1, 2, 2, 4], [1, 3, 2, 4]).statistic
        close(spearman(&[1.0, 2.0, 2.0, 4.0], &[1.0, 3.0, 2.0, 4.0]), 0.948_683_298_050_513_8);
        assert!(spearman(&[1.0, 1.0], &[1.0, 2.0]).is_nan());
    }
}
