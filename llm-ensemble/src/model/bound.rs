//! Why the linear weight is optimal: the margin and the error bound (Eq. 4–5).

/// Eq. 4: the expected margin of the true label over another one,
/// E\[D\] = q / (L − 1) · Σ_i v_i (L w_i − 1).
///
/// `observed` is q, the probability that a worker answers; `labels` is L ≥ 2.
pub fn expected_margin(accuracies: &[f64], weights: &[f64], labels: usize, observed: f64) -> f64 {
    let l = labels as f64;
    let sum: f64 = weights.iter().zip(accuracies).map(|(v, w)| v * (l * w - 1.0)).sum();
    observed * sum / (l - 1.0)
}

/// Eq. 5: P(ŷ ≠ y) ≤ (L − 1) · exp(−t² / 2) with t = E\[D\] / ‖v‖₂ (Hoeffding and a union bound),
/// capped at 1. It holds for t ≥ 0; for t < 0, and without weights, the bound is 1.
///
/// By Cauchy–Schwarz t is largest at v_i ∝ L w_i − 1, which is Eq. 3.
pub fn error_bound(accuracies: &[f64], weights: &[f64], labels: usize, observed: f64) -> f64 {
    let norm = weights.iter().map(|v| v * v).sum::<f64>().sqrt();
    if labels < 2 {
        return 0.0;
    }
    let t = expected_margin(accuracies, weights, labels, observed) / norm;
    if t.is_nan() || t <= 0.0 {
        return 1.0;
    }
    ((labels - 1) as f64 * (-t * t / 2.0).exp()).min(1.0)
}
