//! Hard labels: accuracy and F1.

use std::collections::BTreeMap;

/// Share of positions where `predicted` equals `truth`. NaN without positions.
///
/// # Panics
/// When the slices differ in length.
pub fn accuracy<T: PartialEq>(truth: &[T], predicted: &[T]) -> f64 {
    assert_eq!(truth.len(), predicted.len(), "one prediction per label");
    let hits = truth.iter().zip(predicted).filter(|(a, b)| a == b).count();
    hits as f64 / truth.len() as f64
}

/// True positives, false positives and false negatives of one class, or of all together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Predicted and true.
    pub true_positive: usize,
    /// Predicted, not true.
    pub false_positive: usize,
    /// True, not predicted.
    pub false_negative: usize,
}

impl Counts {
    /// TP / (TP + FP); 0 when nothing was predicted.
    pub fn precision(self) -> f64 {
        ratio(self.true_positive, self.true_positive + self.false_positive)
    }

    /// TP / (TP + FN); 0 when nothing is true.
    pub fn recall(self) -> f64 {
        ratio(self.true_positive, self.true_positive + self.false_negative)
    }

    /// 2 TP / (2 TP + FP + FN); 0 when there is nothing to find and nothing was predicted
    /// (scikit-learn's `zero_division=0`).
    pub fn f1(self) -> f64 {
        let twice = 2 * self.true_positive;
        ratio(twice, twice + self.false_positive + self.false_negative)
    }
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, next| Self {
            true_positive: sum.true_positive + next.true_positive,
            false_positive: sum.false_positive + next.false_positive,
            false_negative: sum.false_negative + next.false_negative,
        })
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Counts of every class that occurs in `truth` or `predicted`, ascending. `None` stands for "no
/// value" on both sides: it is never a class, so an abstention costs recall and no precision.
///
/// # Panics
/// When the slices differ in length.
pub fn class_counts<T: Ord + Clone>(
    truth: &[Option<T>],
    predicted: &[Option<T>],
) -> BTreeMap<T, Counts> {
    assert_eq!(truth.len(), predicted.len(), "one prediction per label");
    let mut counts: BTreeMap<T, Counts> = BTreeMap::new();
    for (truth, predicted) in truth.iter().zip(predicted) {
        if truth == predicted {
            if let Some(class) = truth {
                counts.entry(class.clone()).or_default().true_positive += 1;
            }
            continue;
        }
        if let Some(class) = truth {
            counts.entry(class.clone()).or_default().false_negative += 1;
        }
        if let Some(class) = predicted {
            counts.entry(class.clone()).or_default().false_positive += 1;
        }
    }
    counts
}

/// F1 of the counts summed over all classes. Without `None` on either side it equals
/// [`accuracy`]. 0 without any class.
///
/// # Panics
/// When the slices differ in length.
pub fn micro_f1<T: Ord + Clone>(truth: &[Option<T>], predicted: &[Option<T>]) -> f64 {
    class_counts(truth, predicted).into_values().sum::<Counts>().f1()
}

/// Unweighted mean of the F1 of every class that occurs in `truth` or `predicted`
/// (scikit-learn's `average="macro"`). NaN without any class.
///
/// # Panics
/// When the slices differ in length.
pub fn macro_f1<T: Ord + Clone>(truth: &[Option<T>], predicted: &[Option<T>]) -> f64 {
    let counts = class_counts(truth, predicted);
    counts.values().map(|counts| counts.f1()).sum::<f64>() / counts.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(labels: &[u8]) -> Vec<Option<u8>> {
        labels.iter().map(|&label| (label > 0).then_some(label)).collect()
    }

    #[test]
    fn hand_worked_f1() {
        let truth = some(&[1, 1, 1, 2, 2, 3]);
        let predicted = some(&[1, 1, 2, 2, 3, 3]);
        // class 1: 2 TP, 0 FP, 1 FN; class 2: 1, 1, 1; class 3: 1, 1, 0
        let expected = (4.0 / 5.0 + 0.5 + 2.0 / 3.0) / 3.0;
        assert!((macro_f1(&truth, &predicted) - expected).abs() < 1e-12);
        assert!((micro_f1(&truth, &predicted) - accuracy(&truth, &predicted)).abs() < 1e-12);
    }

    #[test]
    fn an_abstention_costs_recall_only() {
        let counts = class_counts(&some(&[1, 1, 0]), &some(&[1, 0, 1]))[&1];
        assert_eq!((counts.precision(), counts.recall()), (0.5, 0.5));
        let counts = class_counts(&some(&[1, 1]), &some(&[1, 0]))[&1];
        assert_eq!((counts.precision(), counts.recall()), (1.0, 0.5));
    }

    #[test]
    fn nothing_to_measure() {
        assert!(accuracy::<u8>(&[], &[]).is_nan());
        assert!(macro_f1::<u8>(&[], &[]).is_nan());
        assert_eq!(micro_f1::<u8>(&[None], &[None]), 0.0);
    }
}
