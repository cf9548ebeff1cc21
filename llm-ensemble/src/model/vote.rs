//! Weighted voting (Eq. 1–3 and 6; Li & Yu 2014, IWMV).

use crate::votes::{Label, MISSING};

/// Scores this close, relative to the top, are a tie: the order in which floats are summed then
/// never decides a label.
pub const TIE: f64 = 1e-12;

/// Accuracies are clipped to `[CLIP, 1 - CLIP]` before a logarithm.
pub const CLIP: f64 = 1e-3;

/// Eq. 1: score_j\[k\] = Σ_i v_i · T_ij · 1\[W_ij = k\], written into `scores` (one per label).
#[inline]
pub fn scores(workers: &[u32], labels: &[Label], weights: &[f64], scores: &mut [f64]) {
    scores.fill(0.0);
    for (&worker, &label) in workers.iter().zip(labels) {
        scores[label as usize] += weights[worker as usize];
    }
}

/// Eq. 1 and its argmax for two labels, given (−v_i, v_i) per worker: the label, and how far its
/// score lies above the other one.
#[inline]
pub fn elect_of_two(workers: &[u32], labels: &[Label], signed: &[[f64; 2]]) -> (Label, f64) {
    let difference: f64 = workers
        .iter()
        .zip(labels)
        .map(|(&worker, &label)| signed[worker as usize][usize::from(label & 1)])
        .sum();
    (Label::from(difference > 0.0), difference.abs())
}

/// Eq. 1 and its argmax for `N` ≤ 8 labels: the label, and how far its score lies above the next.
/// `N` = 0 takes the number of labels from `buffer`, one number per label.
#[inline]
pub fn elect<const N: usize>(
    workers: &[u32],
    labels: &[Label],
    weights: &[f64],
    buffer: &mut [f64],
) -> (Label, f64) {
    let (label, top, next) = if N == 0 {
        scores(workers, labels, weights, buffer);
        top_two(buffer)
    } else {
        top_two(&sums(workers, labels, weights)[..N])
    };
    (label, top - next)
}

/// [`scores`] for `N` ≤ 8 labels; 0 takes their number from `out`.
#[inline]
pub fn scores_n<const N: usize>(
    workers: &[u32],
    labels: &[Label],
    weights: &[f64],
    out: &mut [f64],
) {
    if N == 0 {
        scores(workers, labels, weights, out);
    } else {
        out.copy_from_slice(&sums(workers, labels, weights)[..N]);
    }
}

/// Eq. 1 for up to 8 labels.
#[inline]
fn sums(workers: &[u32], labels: &[Label], weights: &[f64]) -> [f64; 8] {
    let mut sums = [0.0; 8];
    for (&worker, &label) in workers.iter().zip(labels) {
        sums[usize::from(label & 7)] += weights[worker as usize];
    }
    sums
}

/// The lowest label with the top score, the top score, and the next (−∞ for one label).
#[inline]
pub fn top_two(scores: &[f64]) -> (Label, f64, f64) {
    let (mut label, mut top, mut next) = (0, f64::NEG_INFINITY, f64::NEG_INFINITY);
    for (k, &score) in scores.iter().enumerate() {
        let lower = if score < top { score } else { top };
        next = if lower > next { lower } else { next };
        label = if score > top { k } else { label };
        top = if score > top { score } else { top };
    }
    (label as Label, top, next)
}

/// The argmax of Eq. 1: the lowest label among those within [`TIE`] of the top score.
/// Returns [`MISSING`] for an empty label set.
#[inline]
pub fn argmax(scores: &[f64]) -> Label {
    let Some(top) = top_of(scores) else { return MISSING };
    let floor = top - TIE * (1.0 + top.abs());
    scores.iter().position(|&s| s >= floor).unwrap_or_default() as Label
}

#[inline]
fn top_of(scores: &[f64]) -> Option<f64> {
    let (&first, rest) = scores.split_first()?;
    Some(rest.iter().fold(first, |top, &s| if s > top { s } else { top }))
}

/// The labels within `absolute + relative · |top|` of the top score.
pub fn tied(scores: &[f64], absolute: f64, relative: f64) -> Vec<Label> {
    let Some(top) = top_of(scores) else { return Vec::new() };
    let floor = top - (absolute + relative * top.abs());
    (0..scores.len()).filter(|&k| scores[k] >= floor).map(|k| k as Label).collect()
}

/// Eq. 2: w_i = Σ_j T_ij · 1\[W_ij = ŷ_j\] / Σ_j T_ij, with `prior` = (accuracy, pseudo-votes)
/// added to the counts. `None` for a worker without votes and without a prior.
#[inline]
pub fn agreement(agreed: f64, votes: f64, prior: Option<(f64, f64)>) -> Option<f64> {
    let (accuracy, strength) = prior.unwrap_or((0.0, 0.0));
    let total = votes + strength;
    (total > 0.0).then(|| (agreed + strength * accuracy) / total)
}

/// Eq. 3: v_i = L · w_i − 1; negative when the worker is worse than chance.
#[inline]
pub fn linear_weight(labels: f64, accuracy: f64) -> f64 {
    labels * accuracy - 1.0
}

/// Eq. 6: the oracle (MAP) weight v_i = ln((L − 1) w_i / (1 − w_i)), w_i clipped by [`CLIP`].
/// Eq. 3 is its linearisation at w = 1/L, up to the factor L/(L − 1).
#[inline]
pub fn log_odds_weight(labels: f64, accuracy: f64) -> f64 {
    let w = accuracy.clamp(CLIP, 1.0 - CLIP);
    ((labels - 1.0).max(f64::MIN_POSITIVE) * w / (1.0 - w)).ln()
}
