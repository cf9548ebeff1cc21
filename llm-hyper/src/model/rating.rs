//! Eq. 4: a weight from the probabilities of rating words.

/// Natural logarithm of Σ exp(x); minus infinity without values.
fn log_sum_exp(values: &[f64]) -> f64 {
    let top = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY {
        return top;
    }
    top + values.iter().map(|value| (value - top).exp()).sum::<f64>().ln()
}

/// Probabilities renormalised over the rating words; they sum to 1.
pub fn renormalise(log_probs: &[f64]) -> Vec<f64> {
    let total = log_sum_exp(log_probs);
    log_probs.iter().map(|value| (value - total).exp()).collect()
}

/// Eq. 4: Σ v · p(v) over the renormalised rating words, whose values v run evenly from −1 (first
/// word) to 1 (last). The paper's 1 to 5 with (r − 3) / 2 is the same scale. 0 with fewer than two
/// words.
pub fn expected_rating(log_probs: &[f64]) -> f64 {
    if log_probs.len() < 2 {
        return 0.0;
    }
    let last = (log_probs.len() - 1) as f64;
    let rating: f64 = renormalise(log_probs)
        .iter()
        .enumerate()
        .map(|(level, p)| (2.0 * level as f64 / last - 1.0) * p)
        .sum();
    rating.clamp(-1.0, 1.0)
}

/// Contextual calibration (Zhao et al. 2021): the value under the ad minus the value under an ad
/// without content, so that the model's preference for some words cancels.
///
/// # Panics
/// When the slices differ in length.
pub fn calibrated(values: &[f64], content_free: &[f64]) -> Vec<f64> {
    assert_eq!(values.len(), content_free.len(), "one content-free value per feature");
    values.iter().zip(content_free).map(|(value, base)| value - base).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratings_of_worked_examples() {
        // Only the ratio counts: 0.02 against 0.06 is 1 against 3.
        assert!((expected_rating(&[0.02f64.ln(), 0.06f64.ln()]) - 0.5).abs() < 1e-12);
        // Digits 1 to 5 with r = 1·0.1 + 2·0.1 + 3·0.2 + 4·0.2 + 5·0.4 = 3.7, (3.7 − 3) / 2.
        let five = [0.1f64, 0.1, 0.2, 0.2, 0.4].map(f64::ln);
        assert!((expected_rating(&five) - 0.35).abs() < 1e-12);
        assert_eq!(expected_rating(&[-1.0]), 0.0);
        assert!((renormalise(&[-3.0, -4.0, -900.0]).iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
}
