//! Statistics: bootstrap intervals, paired tests, multiple comparisons.
//!
//! Resampling draws from a [`Stream`], so an interval repeats bit for bit. Resamples are drawn one
//! after another and evaluated in parallel: the thread count changes nothing.

use rayon::prelude::*;
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};
use statrs::function::factorial::ln_binomial;

use crate::rng::{Seed, Stream};

/// Mean and sample standard deviation (divisor `n − 1`). No value gives NaN for both, one value an
/// sd of NaN.
pub fn mean_sd(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, if values.len() < 2 { f64::NAN } else { (squares / (n - 1.0)).sqrt() })
}

/// Student's t interval of the mean at `level` (0.95 = 95 %): `mean ± t · sd / √n` with `n − 1`
/// degrees of freedom. NaN with fewer than two values.
pub fn t_interval(values: &[f64], level: f64) -> [f64; 2] {
    let (mean, sd) = mean_sd(values);
    let n = values.len() as f64;
    let Ok(student) = StudentsT::new(0.0, 1.0, n - 1.0) else {
        return [f64::NAN; 2];
    };
    let half = student.inverse_cdf(0.5 + level / 2.0) * sd / n.sqrt();
    [mean - half, mean + half]
}

/// The `q` quantile of sorted values by linear interpolation between order statistics (numpy's
/// default, type 7). NaN without values.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    if sorted.is_empty() {
        return f64::NAN;
    }
    let place = q.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (place - low as f64)
}

/// 95 % percentile bootstrap interval of a statistic of `n` items: `resamples` times, `n` indices
/// drawn with replacement go to `statistic`; the 2.5 % and 97.5 % quantiles of its values come
/// back. Values that are NaN (the statistic is undefined on that resample) are left out; `n = 0`
/// gives NaN.
pub fn bootstrap_ci(
    n: usize,
    resamples: usize,
    stream: &mut Stream,
    statistic: impl Fn(&[usize]) -> f64 + Sync,
) -> [f64; 2] {
    if n == 0 {
        return [f64::NAN; 2];
    }
    let values = sorted_resamples(n, resamples, stream, &statistic);
    [quantile(&values, 0.025), quantile(&values, 0.975)]
}

/// What [`paired_bootstrap`] found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairedDifference {
    /// Mean of `ours − theirs` over items.
    pub difference: f64,
    /// Its 95 % percentile interval.
    pub ci95: [f64; 2],
    /// Two-sided p-value: twice the smaller share of resamples on one side of 0 (a resample equal
    /// to 0 counts on both), with one added to numerator and denominator, at most 1.
    pub p: f64,
}

/// Bootstrap of the mean difference of two methods measured on the same items, resampling items.
///
/// # Panics
/// When the slices differ in length.
pub fn paired_bootstrap(
    ours: &[f64],
    theirs: &[f64],
    resamples: usize,
    stream: &mut Stream,
) -> PairedDifference {
    assert_eq!(ours.len(), theirs.len(), "one value per item and method");
    let differences: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a - b).collect();
    let mean_of = |indices: &[usize]| {
        indices.iter().map(|&index| differences[index]).sum::<f64>() / indices.len() as f64
    };
    if differences.is_empty() {
        return PairedDifference { difference: f64::NAN, ci95: [f64::NAN; 2], p: f64::NAN };
    }
    let values = sorted_resamples(differences.len(), resamples, stream, &mean_of);
    let below = values.iter().filter(|&&value| value <= 0.0).count();
    let above = values.iter().filter(|&&value| value >= 0.0).count();
    let share = (below.min(above) + 1) as f64 / (values.len() + 1) as f64;
    PairedDifference {
        difference: mean_sd(&differences).0,
        ci95: [quantile(&values, 0.025), quantile(&values, 0.975)],
        p: (2.0 * share).min(1.0),
    }
}

/// Values of `statistic` on the resamples, ascending, without NaN.
fn sorted_resamples(
    n: usize,
    resamples: usize,
    stream: &mut Stream,
    statistic: &(impl Fn(&[usize]) -> f64 + Sync),
) -> Vec<f64> {
    // A seed per resample is drawn in order; the indices are then drawn where they are used.
    let seeds: Vec<u64> =
        (0..resamples).map(|_| (stream.uniform() * 2f64.powi(53)) as u64).collect();
    let mut values: Vec<f64> = seeds
        .par_iter()
        .map_init(
            || vec![0usize; n],
            |indices, &seed| {
                let mut stream = Seed::new(seed).stream("resample");
                indices.iter_mut().for_each(|index| *index = stream.below(n));
                statistic(indices)
            },
        )
        .filter(|value| !value.is_nan())
        .collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Two-sided exact sign test: the probability of a split at least as uneven as `wins` to `losses`
/// when both are equally likely. Ties are left out before. 1 without wins and losses.
pub fn sign_test(wins: usize, losses: usize) -> f64 {
    let n = (wins + losses) as u64;
    let tail: f64 = (0..=wins.min(losses) as u64)
        .map(|k| (ln_binomial(n, k) - n as f64 * std::f64::consts::LN_2).exp())
        .sum();
    (2.0 * tail).min(1.0)
}

/// Two-sided Wilcoxon signed-rank test of paired differences, the p-value.
///
/// Zero differences are dropped, tied sizes share their mean rank. Up to 25 differences without
/// ties the distribution is exact, otherwise it is the normal approximation with tie correction
/// and no continuity correction (scipy's `wilcoxon` with `correction=False`). 1 when nothing is
/// left.
pub fn wilcoxon(differences: &[f64]) -> f64 {
    let kept: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0 && !d.is_nan()).collect();
    let n = kept.len();
    if n == 0 {
        return 1.0;
    }
    let sizes: Vec<f64> = kept.iter().map(|d| d.abs()).collect();
    let ranks = average_ranks(&sizes);
    let plus: f64 = ranks.iter().zip(&kept).filter(|(_, d)| **d > 0.0).map(|(rank, _)| rank).sum();
    let total = (n * (n + 1)) as f64 / 2.0;
    let smaller = plus.min(total - plus);
    let ties = tie_sizes(&sizes);
    if n <= 25 && ties.iter().all(|&size| size == 1) {
        return (2.0 * exact_signed_rank_tail(n, smaller as usize)).min(1.0);
    }
    let n = n as f64;
    let correction: f64 = ties.iter().map(|&t| (t as f64).powi(3) - t as f64).sum();
    let variance = n * (n + 1.0) * (2.0 * n + 1.0) / 24.0 - correction / 48.0;
    let z = (smaller - total / 2.0) / variance.sqrt();
    (2.0 * Normal::standard().cdf(z)).min(1.0)
}

/// P(W ≤ `w`) of the signed-rank sum of `n` items, by counting subsets of 1..=n by their sum.
fn exact_signed_rank_tail(n: usize, w: usize) -> f64 {
    let mut ways = vec![0.0f64; n * (n + 1) / 2 + 1];
    ways[0] = 1.0;
    for rank in 1..=n {
        for sum in (rank..ways.len()).rev() {
            ways[sum] += ways[sum - rank];
        }
    }
    ways[..=w].iter().sum::<f64>() / 2f64.powi(n as i32)
}

/// Holm's step-down adjustment: p-values in the given order, each to be held against the
/// family-wise level. The i-th smallest of m (from 0) becomes `max over j ≤ i of (m − j) · p_j`,
/// at most 1.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut highest = 0.0f64;
    for (step, &index) in order.iter().enumerate() {
        let scaled = (p_values.len() - step) as f64 * p_values[index];
        highest = highest.max(scaled.min(1.0));
        adjusted[index] = highest;
    }
    adjusted
}

/// Ranks from 1; equal values share the mean of their ranks.
pub fn average_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for group in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = start as f64 + (group.len() + 1) as f64 / 2.0;
        group.iter().for_each(|&index| ranks[index] = rank);
        start += group.len();
    }
    ranks
}

/// Sizes of the groups of equal values.
fn tie_sizes(values: &[f64]) -> Vec<usize> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.chunk_by(|a, b| a == b).map(<[f64]>::len).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    #[test]
    fn quantiles_equal_numpy() {
        // numpy.quantile([1, 2, 4, 8], [0, .1, .5, .975])
        let values = [1.0, 2.0, 4.0, 8.0];
        for (q, expected) in [(0.0, 1.0), (0.1, 1.3), (0.5, 3.0), (0.975, 7.7), (1.0, 8.0)] {
            close(quantile(&values, q), expected);
        }
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn bootstrap_interval_of_a_share_is_about_the_normal_one() {
        let hits = |indices: &[usize]| {
            indices.iter().filter(|&&index| index < 300).count() as f64 / indices.len() as f64
        };
        let interval = || bootstrap_ci(1000, 2000, &mut Seed::new(1).stream("ci"), hits);
        let [low, high] = interval();
        // 0.3 ± 1.96 · sqrt(0.3 · 0.7 / 1000) = 0.2716 … 0.3284
        assert!((low - 0.2716).abs() < 0.004 && (high - 0.3284).abs() < 0.004, "{low} {high}");
        assert_eq!(interval(), [low, high]);
        assert!(bootstrap_ci(0, 10, &mut Seed::new(1).stream("ci"), hits)[0].is_nan());
    }

    #[test]
    fn paired_bootstrap_tells_a_difference_from_none() {
        let mut noise = Seed::new(2).stream("noise");
        let theirs: Vec<f64> = (0..400).map(|_| noise.normal()).collect();
        let better: Vec<f64> = theirs.iter().map(|x| x + 0.1 + 0.3 * noise.normal()).collect();
        let same: Vec<f64> = theirs.iter().map(|x| x + 0.3 * noise.normal()).collect();
        let test = |ours: &[f64]| {
            paired_bootstrap(ours, &theirs, 2000, &mut Seed::new(3).stream("paired"))
        };
        assert!(test(&better).p < 0.01 && test(&better).ci95[0] > 0.0);
        assert!(test(&same).p > 0.05 && test(&same).ci95[0] < 0.0);
        close(test(&theirs).p, 1.0);
    }

    #[test]
    fn sign_test_equals_scipy() {
        // scipy.stats.binomtest(k, n, 0.5).pvalue
        close(sign_test(8, 2), 0.109375);
        close(sign_test(15, 0), 6.103515625e-05);
        close(sign_test(5, 5), 1.0);
        close(sign_test(0, 0), 1.0);
    }

    #[test]
    fn holm_by_hand() {
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (value, expected) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            close(*value, expected);
        }
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn tied_values_share_ranks() {
        assert_eq!(average_ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
    }

    #[test]
    fn wilcoxon_equals_scipy() {
        // scipy.stats.wilcoxon(d, correction=False).pvalue, exact without ties
        let d = [1.5, -0.5, 2.5, 3.0, -1.0, 4.0, 2.0, 0.7];
        close(wilcoxon(&d), WILCOXON_EXACT);
        let tied = [1.0, 1.0, -1.0, 2.0, 3.0, -2.0, 4.0, 0.0, 5.0, 1.0];
        close(wilcoxon(&tied), WILCOXON_TIED);
        close(wilcoxon(&[0.0, 0.0]), 1.0);
    }

    const WILCOXON_EXACT: f64 = 0.054_687_5;
    const WILCOXON_TIED: f64 = 0.082_806_193_274_193_86;
}
