//! Eq. 6: the intercept that makes an ad's mean predicted click probability a given one.

use common::{Error, Result};

use super::logit::sigmoid;

/// Largest |b| that is looked at.
pub const RANGE: f64 = 30.0;
/// |g(b)| at which the root counts as found.
pub const TOLERANCE: f64 = 1e-10;

/// g(b) = mean sigmoid(zᵢ + b) − p̄.
pub fn gap(logits: &[f64], bias: f64, target: f64) -> f64 {
    logits.iter().map(|z| sigmoid(z + bias)).sum::<f64>() / logits.len() as f64 - target
}

/// Eq. 6: the b with g(b) = 0, where `logits` are w · x over reference users and `target` is p̄.
/// g rises strictly from −p̄ to 1 − p̄, so there is one root; Newton's steps are kept inside a
/// shrinking bracket, [−30, 30] at first and wider only when logits are that large.
///
/// # Errors
/// [`Error::Data`] without users, on logits that are not finite, or unless 0 < p̄ < 1 (smooth
/// rates with [`smoothed_rate`]).
pub fn solve(logits: &[f64], target: f64) -> Result<f64> {
    if logits.is_empty() || logits.iter().any(|z| !z.is_finite()) {
        return Err(Error::data(
            format!("{} reference users, not all with a finite logit", logits.len()),
            "at least one reference user and finite weights",
        ));
    }
    if !(target > 0.0 && target < 1.0) {
        return Err(Error::data(
            format!("the mean click probability {target}"),
            "a rate above 0 and below 1; smooth the click rate of ads without clicks",
        ));
    }
    let widest = logits.iter().fold(0.0f64, |top, z| top.max(z.abs()));
    let (mut low, mut high) = (-RANGE - widest, RANGE + widest);
    let mut bias = super::logit::logit(target);
    for _ in 0..200 {
        let value = gap(logits, bias, target);
        if value == 0.0 || high - low < 1e-15 * bias.abs().max(1.0) {
            break;
        }
        if value > 0.0 {
            high = bias
        } else {
            low = bias
        }
        let slope = logits
            .iter()
            .map(|z| {
                let p = sigmoid(z + bias);
                p * (1.0 - p)
            })
            .sum::<f64>()
            / logits.len() as f64;
        let newton = bias - value / slope;
        let next = if newton > low && newton < high { newton } else { 0.5 * (low + high) };
        if value.abs() <= TOLERANCE * 1e-3 || next == bias {
            break;
        }
        bias = next;
    }
    Ok(bias)
}

/// (clicks + a) / (impressions + a + b): a click rate that is never 0 or 1.
pub fn smoothed_rate(clicks: f64, impressions: f64, a: f64, b: f64) -> f64 {
    (clicks + a) / (impressions + a + b)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn equal_users_give_the_logit_of_the_rate() {
        let bias = solve(&[0.5; 4], 0.2).unwrap();
        assert!((bias - (0.25f64.ln() - 0.5)).abs() < 1e-9, "{bias}");
    }

    #[test]
    fn impossible_rates_are_refused() {
        for target in [0.0, 1.0, -0.1, f64::NAN] {
            assert!(solve(&[0.0], target).unwrap_err().to_string().contains("above 0"));
        }
        assert!(solve(&[], 0.5).is_err());
        assert!((smoothed_rate(0.0, 0.0, 1.0, 4.0) - 0.2).abs() < 1e-15);
    }
}
