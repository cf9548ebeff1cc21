//! Scores and probabilities of a binary or multi-class outcome.

/// Number of equal-width bins of [`ece`].
pub const ECE_BINS: usize = 15;

/// Area under the ROC curve: the (weighted) probability that a positive scores above a negative,
/// a tie counting one half. NaN without positives or without negatives.
///
/// # Panics
/// When the slices differ in length.
pub fn auc(labels: &[bool], scores: &[f64], weights: Option<&[f64]>) -> f64 {
    let (mut area, mut below) = (0.0, 0.0);
    let (mut positives, mut negatives) = (0.0, 0.0);
    for group in groups(labels, scores, weights, Order::Ascending) {
        area += group.positive * (below + group.negative / 2.0);
        below += group.negative;
        positives += group.positive;
        negatives += group.negative;
    }
    area / (positives * negatives)
}

/// Average precision `Σ (R_i − R_{i−1}) P_i` over the distinct scores from high to low, without
/// interpolation; items of equal score enter together. NaN without positives.
///
/// # Panics
/// When the slices differ in length.
pub fn average_precision(labels: &[bool], scores: &[f64], weights: Option<&[f64]>) -> f64 {
    let (mut sum, mut positives, mut all) = (0.0, 0.0, 0.0);
    for group in groups(labels, scores, weights, Order::Descending) {
        positives += group.positive;
        all += group.positive + group.negative;
        sum += group.positive * if all > 0.0 { positives / all } else { 0.0 };
    }
    sum / positives
}

/// Weight of the positives and negatives that share one score.
struct Group {
    positive: f64,
    negative: f64,
}

enum Order {
    Ascending,
    Descending,
}

fn groups(labels: &[bool], scores: &[f64], weights: Option<&[f64]>, order: Order) -> Vec<Group> {
    assert_eq!(labels.len(), scores.len(), "one score per label");
    assert!(weights.is_none_or(|weights| weights.len() == labels.len()), "one weight per label");
    let mut indices: Vec<usize> = (0..labels.len()).collect();
    indices.sort_by(|&a, &b| match order {
        Order::Ascending => scores[a].total_cmp(&scores[b]),
        Order::Descending => scores[b].total_cmp(&scores[a]),
    });
    indices
        .chunk_by(|&a, &b| scores[a] == scores[b])
        .map(|tied| {
            let weight = |wanted: bool| -> f64 {
                tied.iter()
                    .filter(|&&index| labels[index] == wanted)
                    .map(|&index| weights.map_or(1.0, |weights| weights[index]))
                    .sum()
            };
            Group { positive: weight(true), negative: weight(false) }
        })
        .collect()
}

/// (Weighted) mean of `−ln p(label)`, probabilities clipped to `[2⁻⁵², 1 − 2⁻⁵²]`. NaN without
/// items.
///
/// # Panics
/// When the slices differ in length.
pub fn log_loss(labels: &[bool], probabilities: &[f64], weights: Option<&[f64]>) -> f64 {
    assert_eq!(labels.len(), probabilities.len(), "one probability per label");
    assert!(weights.is_none_or(|weights| weights.len() == labels.len()), "one weight per label");
    let losses = labels.iter().zip(probabilities).map(|(&label, &p)| {
        let p = clip(p);
        if label { -p.ln() } else { -(1.0 - p).ln() }
    });
    match weights {
        None => losses.sum::<f64>() / labels.len() as f64,
        Some(weights) => {
            losses.zip(weights).map(|(loss, weight)| loss * weight).sum::<f64>()
                / weights.iter().sum::<f64>()
        }
    }
}

/// Mean of `−ln p(label)` over several classes: `probabilities[i]` is the distribution of item
/// `i`, clipped as in [`log_loss`]. NaN without items.
///
/// # Panics
/// When the slices differ in length or a label is not below the number of classes.
pub fn log_loss_multiclass(labels: &[usize], probabilities: &[Vec<f64>]) -> f64 {
    assert_eq!(labels.len(), probabilities.len(), "one distribution per label");
    let losses = labels.iter().zip(probabilities).map(|(&label, p)| -clip(p[label]).ln());
    losses.sum::<f64>() / labels.len() as f64
}

fn clip(p: f64) -> f64 {
    p.clamp(f64::EPSILON, 1.0 - f64::EPSILON)
}

/// Brier score: mean of `(p − label)²`, 0 to 1. NaN without items.
///
/// # Panics
/// When the slices differ in length.
pub fn brier(labels: &[bool], probabilities: &[f64]) -> f64 {
    assert_eq!(labels.len(), probabilities.len(), "one probability per label");
    let squares = labels
        .iter()
        .zip(probabilities)
        .map(|(&label, p)| (p - f64::from(u8::from(label))).powi(2));
    squares.sum::<f64>() / labels.len() as f64
}

/// Brier's original score over several classes: mean of `Σ_k (p_k − 1[label = k])²`, 0 to 2. NaN
/// without items.
///
/// # Panics
/// When the slices differ in length.
pub fn brier_multiclass(labels: &[usize], probabilities: &[Vec<f64>]) -> f64 {
    assert_eq!(labels.len(), probabilities.len(), "one distribution per label");
    let squares = labels.iter().zip(probabilities).map(|(&label, distribution)| {
        let terms = distribution.iter().enumerate().map(|(class, p)| {
            let target = if class == label { 1.0 } else { 0.0 };
            (p - target).powi(2)
        });
        terms.sum::<f64>()
    });
    squares.sum::<f64>() / labels.len() as f64
}

/// One bin of a reliability diagram.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReliabilityBin {
    /// Lower end; the upper end is the next bin's lower end.
    pub low: f64,
    /// Items in the bin.
    pub count: usize,
    /// Mean probability of its items, NaN when empty.
    pub confidence: f64,
    /// Share of its items with a true label, NaN when empty.
    pub frequency: f64,
}

/// `bins` equal-width bins of the probability; an item's bin is `min(⌊bins · p⌋, bins − 1)`.
/// For a multi-class predictor pass the top probability and whether the top class was right.
///
/// # Panics
/// When the slices differ in length or `bins` is 0.
pub fn reliability_bins(
    labels: &[bool],
    probabilities: &[f64],
    bins: usize,
) -> Vec<ReliabilityBin> {
    assert_eq!(labels.len(), probabilities.len(), "one probability per label");
    assert!(bins > 0, "at least one bin");
    let mut sums = vec![(0usize, 0.0, 0usize); bins];
    for (&label, &p) in labels.iter().zip(probabilities) {
        // The cast takes negative numbers and NaN to 0.
        let bin = ((p * bins as f64) as usize).min(bins - 1);
        sums[bin].0 += 1;
        sums[bin].1 += p;
        sums[bin].2 += usize::from(label);
    }
    sums.into_iter()
        .enumerate()
        .map(|(bin, (count, confidence, positives))| ReliabilityBin {
            low: bin as f64 / bins as f64,
            count,
            confidence: confidence / count as f64,
            frequency: positives as f64 / count as f64,
        })
        .collect()
}

/// Expected calibration error over [`ECE_BINS`] bins of [`reliability_bins`]:
/// `Σ (count / n) · |confidence − frequency|`. NaN without items.
///
/// # Panics
/// When the slices differ in length.
pub fn ece(labels: &[bool], probabilities: &[f64]) -> f64 {
    if labels.is_empty() {
        return f64::NAN;
    }
    reliability_bins(labels, probabilities, ECE_BINS)
        .iter()
        .filter(|bin| bin.count > 0)
        .map(|bin| bin.count as f64 / labels.len() as f64 * (bin.confidence - bin.frequency).abs())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn auc_by_hand() {
        close(auc(&[true, false, true, false], &[0.9, 0.8, 0.7, 0.1], None), 0.75);
        close(auc(&[true, false], &[0.5, 0.5], None), 0.5);
        assert!(auc(&[true, true], &[0.1, 0.2], None).is_nan());
        assert!(average_precision(&[false], &[0.1], None).is_nan());
    }

    #[test]
    fn several_classes_reduce_to_two() {
        let labels = [true, false, true];
        let p = [0.8, 0.3, 0.4];
        let both: Vec<Vec<f64>> = p.iter().map(|p| vec![1.0 - p, *p]).collect();
        let classes = labels.map(usize::from);
        close(log_loss_multiclass(&classes, &both), log_loss(&labels, &p, None));
        close(brier_multiclass(&classes, &both), 2.0 * brier(&labels, &p));
    }

    #[test]
    fn a_perfect_and_a_wrong_forecast() {
        close(ece(&[true, false], &[1.0, 0.0]), 0.0);
        close(ece(&[true, true], &[0.0, 0.0]), 1.0);
        close(brier(&[true, true], &[0.0, 1.0]), 0.5);
        assert!(log_loss(&[true], &[0.0], None) < 37.0);
    }

    #[test]
    fn bins_hold_every_item_once() {
        let p = [0.0, 0.1, 0.5, 0.999, 1.0];
        let bins = reliability_bins(&[true; 5], &p, 10);
        assert_eq!(bins.iter().map(|bin| bin.count).sum::<usize>(), 5);
        assert_eq!((bins[9].count, bins[1].count, bins[5].count), (2, 1, 1));
        assert!(bins[3].frequency.is_nan());
    }
}
