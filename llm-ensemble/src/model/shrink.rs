//! Shrinkage of counts towards a base distribution, its strength set by the data
//! (empirical Bayes for the Dirichlet-multinomial; Minka 2000, fixed point of eq. 55).

/// Strengths stay within these pseudo-counts.
const STRENGTHS: [f64; 2] = [1e-2, 1e4];

/// ψ(x), the derivative of ln Γ, for x > 0; absolute error below 1e-11.
pub fn digamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 0.0);
    while x < 10.0 {
        shift -= 1.0 / x;
        x += 1.0;
    }
    let r = 1.0 / (x * x);
    let series = r
        * (1.0 / 12.0
            - r * (1.0 / 120.0 - r * (1.0 / 252.0 - r * (1.0 / 240.0 - r * (1.0 / 132.0)))));
    shift + x.ln() - 0.5 / x - series
}

/// ln Γ(x) for x > 0 by Stirling's series; absolute error below 1e-10.
pub fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 0.0);
    while x < 10.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let r = 1.0 / (x * x);
    let series = (1.0 / 12.0 - r * (1.0 / 360.0 - r * (1.0 / 1260.0 - r / 1680.0))) / x;
    shift + (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series
}

/// KL(Dirichlet(n + b) ‖ Dirichlet(b)) for rows of (counts n, prior b).
pub fn dirichlet_gain(rows: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let total: f64 = rows.clone().map(|(n, b)| n + b).sum();
    let prior: f64 = rows.clone().map(|(_, b)| b).sum();
    let at_total = digamma(total);
    rows.fold(ln_gamma(total) - ln_gamma(prior), |sum, (n, b)| {
        sum + ln_gamma(b) - ln_gamma(n + b) + n * (digamma(n + b) - at_total)
    })
}

/// One fixed-point step for the strength s of a Dirichlet prior s · B, given rows of
/// (counts, base): s ← s · Σ_r Σ_l B_rl (ψ(n_rl + s B_rl) − ψ(s B_rl)) / Σ_r (ψ(n_r + s) − ψ(s)).
///
/// Each step raises the marginal likelihood of the counts. Rows without counts say nothing.
/// Result within 0.01 to 10,000 pseudo-counts.
pub fn strength_step<'a>(rows: impl Iterator<Item = (&'a [f64], &'a [f64])>, strength: f64) -> f64 {
    let (mut gain, mut loss) = (0.0, 0.0);
    let at_strength = digamma(strength);
    for (counts, base) in rows {
        let total: f64 = counts.iter().sum();
        if total < 1e-9 {
            continue;
        }
        loss += digamma(total + strength) - at_strength;
        for (&n, &b) in counts.iter().zip(base) {
            if n > 1e-12 {
                gain += b * (digamma(n + strength * b) - digamma(strength * b));
            }
        }
    }
    if loss <= 0.0 {
        return strength;
    }
    (strength * gain / loss).clamp(STRENGTHS[0], STRENGTHS[1])
}

/// Accuracies shrunk towards the pooled accuracy: (right_i + s·w̄) / (n_i + s) with s from
/// [`strength_step`]. Returns the accuracies (w̄ for workers without votes) and s.
pub fn shrunken_accuracies(right: &[f64], totals: &[f64], steps: usize) -> (Vec<f64>, f64) {
    let (hits, votes) = (right.iter().sum::<f64>(), totals.iter().sum::<f64>());
    let pooled = ((hits + 0.5) / (votes + 1.0)).clamp(1e-6, 1.0 - 1e-6);
    let base = [pooled, 1.0 - pooled];
    let rows: Vec<[f64; 2]> =
        right.iter().zip(totals).map(|(&r, &n)| [r, (n - r).max(0.0)]).collect();
    let mut strength = 4.0;
    for _ in 0..steps {
        strength = strength_step(rows.iter().map(|row| (&row[..], &base[..])), strength);
    }
    let accuracy =
        right.iter().zip(totals).map(|(r, n)| (r + strength * pooled) / (n + strength)).collect();
    (accuracy, strength)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digamma_matches_known_values() {
        // scipy.special.digamma
        for (x, expected) in [
            (1.0, -0.577_215_664_901_532_9),
            (0.1, -10.423_754_940_411_076),
            (2.5, 0.703_156_640_645_243_2),
            (100.0, 4.600_161_852_738_087),
        ] {
            assert!((digamma(x) - expected).abs() < 1e-11, "digamma({x}) = {}", digamma(x));
        }
    }

    #[test]
    fn ln_gamma_matches_known_values() {
        // ln Γ(1/2) = ln √π, ln Γ(5) = ln 24, scipy.special.gammaln(0.03), gammaln(12.5)
        for (x, expected) in [
            (0.5, std::f64::consts::PI.sqrt().ln()),
            (5.0, 24_f64.ln()),
            (0.03, 3.489_971_043_442_412),
            (12.5, 18.734_347_511_936_45),
        ] {
            assert!((ln_gamma(x) - expected).abs() < 1e-9, "ln_gamma({x}) = {}", ln_gamma(x));
        }
        assert!(dirichlet_gain([(0.0, 1.0), (0.0, 4.0)].into_iter()).abs() < 1e-12);
        assert!(dirichlet_gain([(5.0, 1.0), (1.0, 4.0)].into_iter()) > 0.0);
    }

    #[test]
    fn strength_is_high_for_like_workers_and_low_for_unlike_ones() {
        let base = [0.5, 0.5];
        let fit = |rows: &[[f64; 2]]| {
            (0..200).fold(4.0, |s, _| strength_step(rows.iter().map(|r| (&r[..], &base[..])), s))
        };
        let alike = fit(&[[50.0, 50.0], [51.0, 49.0], [49.0, 51.0]]);
        let unlike = fit(&[[100.0, 0.0], [0.0, 100.0], [98.0, 2.0]]);
        assert!(unlike < 1.0 && alike > 30.0 * unlike, "alike {alike}, unlike {unlike}");
    }
}
