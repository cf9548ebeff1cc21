//! Eq. 5: raw weights of any scale become weights on the scale of trained ones. The paper says
//! that it normalises, not how; the four modes are ours.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How raw weights are normalised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalisation {
    /// u · s / ‖u‖ with s = the median norm of the demonstrations' trained weights.
    #[default]
    L2,
    /// u / max |u|.
    Maxabs,
    /// μ + sd · (u − mean u) / (sd u + 1e-8), μ and sd over all trained weights.
    Zscore,
    /// The k-th smallest u becomes the same quantile of all trained weights.
    Quantile,
}

/// What normalisation needs to know about trained weights.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightScale {
    /// Mean of all trained weights.
    pub mean: f64,
    /// Standard deviation of all trained weights.
    pub sd: f64,
    /// All trained weights, ascending.
    pub sorted: Vec<f64>,
    /// 99th percentile of their absolute values: the largest weight that is served.
    pub limit: f64,
}

impl WeightScale {
    /// The scale of trained weight vectors; `None` without any weight.
    pub fn of(vectors: &[&[f64]]) -> Option<Self> {
        let mut sorted: Vec<f64> = vectors.iter().flat_map(|v| v.iter().copied()).collect();
        if sorted.is_empty() {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len() as f64;
        let mean = sorted.iter().sum::<f64>() / n;
        let sd = (sorted.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / n).sqrt();
        let mut sizes: Vec<f64> = sorted.iter().map(|w| w.abs()).collect();
        sizes.sort_by(f64::total_cmp);
        let limit = common::stats::quantile(&sizes, 0.99);
        Some(Self { mean, sd, sorted, limit })
    }
}

/// Euclidean norm.
pub fn norm(weights: &[f64]) -> f64 {
    weights.iter().map(|w| w * w).sum::<f64>().sqrt()
}

/// The median of `values` (mean of the middle two); NaN without any.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    common::stats::quantile(&sorted, 0.5)
}

/// Eq. 5, then every weight clipped to ±[`WeightScale::limit`]. `demonstration_norm` is the median
/// norm of the demonstrations. `None` for raw weights that are all zero or not finite: they say
/// nothing, and the caller falls back.
pub fn normalise(
    raw: &[f64],
    mode: Normalisation,
    demonstration_norm: f64,
    scale: &WeightScale,
) -> Option<Vec<f64>> {
    let largest = raw.iter().fold(0.0f64, |top, u| top.max(u.abs()));
    if largest == 0.0 || !raw.iter().all(|u| u.is_finite()) {
        return None;
    }
    let weights: Vec<f64> = match mode {
        Normalisation::L2 => {
            // Divided by the largest first, so that squares neither overflow nor vanish.
            let size = norm(&raw.iter().map(|u| u / largest).collect::<Vec<_>>());
            raw.iter().map(|u| u / largest * demonstration_norm / size).collect()
        }
        Normalisation::Maxabs => raw.iter().map(|u| u / largest).collect(),
        Normalisation::Zscore => {
            let (mean, _) = common::stats::mean_sd(raw);
            let n = raw.len() as f64;
            let sd = (raw.iter().map(|u| (u - mean).powi(2)).sum::<f64>() / n).sqrt();
            raw.iter().map(|u| scale.mean + scale.sd * (u - mean) / (sd + 1e-8)).collect()
        }
        Normalisation::Quantile => {
            let ranks = common::stats::average_ranks(raw);
            let last = (raw.len().max(2) - 1) as f64;
            let place = |rank: f64| if raw.len() == 1 { 0.5 } else { (rank - 1.0) / last };
            ranks.iter().map(|r| common::stats::quantile(&scale.sorted, place(*r))).collect()
        }
    };
    Some(weights.into_iter().map(|w| w.clamp(-scale.limit, scale.limit)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn modes_on_a_worked_example() {
        let trained: [&[f64]; 2] = [&[-2.0, 0.0], &[1.0, 5.0]];
        let scale = WeightScale { limit: 100.0, ..WeightScale::of(&trained).unwrap() };
        let raw = [3.0, -4.0];
        let l2 = normalise(&raw, Normalisation::L2, 10.0, &scale).unwrap();
        assert!((l2[0] - 6.0).abs() < 1e-12 && (l2[1] + 8.0).abs() < 1e-12, "{l2:?}");
        assert_eq!(normalise(&raw, Normalisation::Maxabs, 1.0, &scale).unwrap(), [0.75, -1.0]);
        assert_eq!(normalise(&raw, Normalisation::Quantile, 1.0, &scale).unwrap(), [5.0, -2.0]);
        let z = normalise(&raw, Normalisation::Zscore, 1.0, &scale).unwrap();
        // mean 1, population sd √6.5; the raw values are one sd from their mean.
        assert!((z[0] - (1.0 + 6.5f64.sqrt())).abs() < 1e-6, "{z:?}");
        assert_eq!(normalise(&[0.0, 0.0], Normalisation::L2, 1.0, &scale), None);
        assert_eq!(normalise(&[f64::NAN, 1.0], Normalisation::L2, 1.0, &scale), None);
    }
}
