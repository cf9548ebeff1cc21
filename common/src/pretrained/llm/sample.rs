//! The next token from logits.

use toktrie::SimpleVob;

use crate::rng::Stream;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sampling {
    /// 0 is greedy.
    pub(super) temperature: f64,
    /// The smallest set of most probable tokens that sums to at least this is kept.
    pub(super) top_p: f64,
}

/// A token among those that `mask` allows; the lowest id of equals when greedy. `None` when
/// nothing is allowed or no logit is a number.
pub(super) fn pick(
    logits: &[f32],
    mask: Option<&SimpleVob>,
    sampling: Sampling,
    stream: &mut Stream,
) -> Option<u32> {
    let mut candidates: Vec<(u32, f32)> = Vec::new();
    let mut keep = |id: usize| {
        if let Some(&logit) = logits.get(id)
            && logit > f32::NEG_INFINITY
        {
            candidates.push((id as u32, logit));
        }
    };
    match mask {
        Some(mask) => mask.iter_set_entries(keep),
        None => (0..logits.len()).for_each(&mut keep),
    }
    // Stable, so equals stay in the order of their ids.
    let best = candidates.iter().copied().reduce(|a, b| if b.1 > a.1 { b } else { a })?;
    if sampling.temperature == 0.0 {
        return Some(best.0);
    }
    let weight = |logit: f32| (f64::from(logit - best.1) / sampling.temperature).exp();
    if sampling.top_p < 1.0 {
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
        let total: f64 = candidates.iter().map(|&(_, logit)| weight(logit)).sum();
        let mut sum = 0.0;
        let kept = candidates.iter().position(|&(_, logit)| {
            sum += weight(logit);
            sum >= sampling.top_p * total
        });
        candidates.truncate(kept.map_or(candidates.len(), |last| last + 1));
    }
    let weights: Vec<f64> = candidates.iter().map(|&(_, logit)| weight(logit)).collect();
    candidates.get(stream.weighted(&weights)).map(|&(id, _)| id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::rng::Seed;

    const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0 };

    fn counts(logits: &[f32], sampling: Sampling) -> Vec<usize> {
        let mut stream = Seed::new(1).stream("sample");
        let mut counts = vec![0; logits.len()];
        for _ in 0..10_000 {
            counts[pick(logits, None, sampling, &mut stream).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_of_the_best_that_are_allowed() {
        let logits = [0.0, 3.0, f32::NAN, 3.0, 5.0];
        let mut stream = Seed::new(1).stream("sample");
        let mut mask = SimpleVob::alloc(5);
        mask.allow_range(0..=3);
        assert_eq!(pick(&logits, None, GREEDY, &mut stream), Some(4));
        assert_eq!(pick(&logits, Some(&mask), GREEDY, &mut stream), Some(1));
        assert_eq!(pick(&logits, Some(&SimpleVob::alloc(5)), GREEDY, &mut stream), None);
        assert_eq!(pick(&[f32::NAN; 3], None, GREEDY, &mut stream), None);
    }

    #[test]
    fn draws_follow_temperature_and_nucleus() {
        // Probabilities 0.5, 0.3, 0.2 at temperature 1.
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
        let plain = counts(&logits, Sampling { temperature: 1.0, top_p: 1.0 });
        for (count, expected) in plain.iter().zip([5_000, 3_000, 2_000]) {
            assert!(count.abs_diff(expected) < 200, "{plain:?}");
        }
        // At temperature 0.5 the weights are squared: 25, 9, 4 of 38.
        let cold = counts(&logits, Sampling { temperature: 0.5, top_p: 1.0 });
        for (count, expected) in cold.iter().zip([6_579, 2_368, 1_053]) {
            assert!(count.abs_diff(expected) < 200, "{cold:?}");
        }
        let nucleus = counts(&logits, Sampling { temperature: 1.0, top_p: 0.7 });
        assert_eq!(nucleus[2], 0);
        assert!(nucleus[0].abs_diff(6_250) < 200, "{nucleus:?}");
    }
}
