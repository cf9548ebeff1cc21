//! The protocol: full ranking, accuracy at k, and how a model's recommendations favour popular
//! items (IFairLRS' group unfairness).

use common::metrics::{coverage, gini, hit_rate_at};
use serde::{Deserialize, Serialize};

use crate::data::Case;

/// Recommendations of one method: the first items of each case, best first, seen items removed
/// where the data set asks for it.
pub type Lists = Vec<Vec<u32>>;

/// Items in groups of equal count by training popularity, rarest first (IFairLRS: 5 groups).
#[derive(Debug, Clone, PartialEq)]
pub struct Groups {
    of: Vec<usize>,
    count: usize,
}

impl Groups {
    /// `count` groups of equal size; ties in popularity by item number.
    pub fn equal_count(counts: &[u64], count: usize) -> Self {
        let mut order: Vec<usize> = (0..counts.len()).collect();
        order.sort_by_key(|&item| (counts[item], item));
        let mut of = vec![0; counts.len()];
        for (rank, item) in order.into_iter().enumerate() {
            of[item] = rank * count / counts.len();
        }
        Self { of, count }
    }

    /// Group of an item; the last one holds the popular items (top 20 % with 5 groups).
    pub fn of(&self, item: u32) -> usize {
        self.of[item as usize]
    }

    /// Share of each group among `items`; NaN without items.
    pub fn shares<'a>(&self, items: impl IntoIterator<Item = &'a u32>) -> Vec<f64> {
        let mut counts = vec![0f64; self.count];
        items.into_iter().for_each(|&item| counts[self.of(item)] += 1.0);
        let total: f64 = counts.iter().sum();
        counts.into_iter().map(|count| count / total).collect()
    }
}

/// GU(g) = GP(g) − GH(g): the group's share among recommendations minus its share among histories.
pub fn group_unfairness(recommended: &[f64], history: &[f64]) -> Vec<f64> {
    recommended.iter().zip(history).map(|(p, h)| p - h).collect()
}

/// MGU = mean of |GU(g)|; 0 when recommendations mirror the histories.
pub fn mgu(unfairness: &[f64]) -> f64 {
    unfairness.iter().map(|gu| gu.abs()).sum::<f64>() / unfairness.len() as f64
}

/// DGU = largest minus smallest GU(g).
pub fn dgu(unfairness: &[f64]) -> f64 {
    let most = unfairness.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let least = unfairness.iter().copied().fold(f64::INFINITY, f64::min);
    most - least
}

/// One method on one set of cases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Hit rate at 5.
    pub hr5: f64,
    /// NDCG at 5.
    pub ndcg5: f64,
    /// Hit rate at 10.
    pub hr10: f64,
    /// NDCG at 10.
    pub ndcg10: f64,
    /// Mean group unfairness at 10.
    pub mgu: f64,
    /// Spread of group unfairness at 10.
    pub dgu: f64,
    /// Share of the catalogue that is recommended at 10.
    pub coverage: f64,
    /// Gini coefficient of recommendations at 10 over the catalogue.
    pub gini: f64,
    /// Hit rate at 10 over targets outside of the most popular 20 % of items.
    pub tail_hr10: f64,
    /// GU(g), rarest group first.
    pub unfairness: Vec<f64>,
    /// NDCG@10 of each case, for paired tests.
    #[serde(skip)]
    pub gains: Vec<f64>,
}

impl Scores {
    /// The scalar metrics by name, with whether higher is better.
    pub fn named(&self) -> [(&'static str, f64, bool); 9] {
        [
            ("hr@5", self.hr5, true),
            ("ndcg@5", self.ndcg5, true),
            ("hr@10", self.hr10, true),
            ("ndcg@10", self.ndcg10, true),
            ("mgu@10", self.mgu, false),
            ("dgu@10", self.dgu, false),
            ("coverage@10", self.coverage, true),
            ("gini@10", self.gini, false),
            ("tail hr@10", self.tail_hr10, true),
        ]
    }
}

/// 1 / log2(rank + 1), 0 below rank k.
fn gain(rank: Option<f64>, k: f64) -> f64 {
    rank.filter(|&rank| rank <= k).map_or(0.0, |rank| 1.0 / (rank + 1.0).log2())
}

/// Metrics of `lists` (one per case) over a catalogue of `items` items.
///
/// # Panics
/// When there are more or fewer lists than cases.
pub fn evaluate(cases: &[Case], lists: &Lists, groups: &Groups, items: usize) -> Scores {
    assert_eq!(cases.len(), lists.len(), "one list per case");
    let ranks: Vec<Option<f64>> = cases
        .iter()
        .zip(lists)
        .map(|(case, list)| {
            list.iter().position(|item| *item == case.target).map(|place| place as f64 + 1.0)
        })
        .collect();
    let mean = |k: f64| ranks.iter().map(|&r| gain(r, k)).sum::<f64>() / ranks.len() as f64;
    let top = || lists.iter().flat_map(|list| list.iter().take(10));
    let history = groups.shares(cases.iter().flat_map(|case| &case.history));
    let unfairness = group_unfairness(&groups.shares(top()), &history);
    let mut exposure = vec![0f64; items];
    top().for_each(|&item| exposure[item as usize] += 1.0);
    let tail: Vec<Option<f64>> = cases
        .iter()
        .zip(&ranks)
        .filter(|(case, _)| groups.of(case.target) + 1 < groups.count)
        .map(|(_, rank)| *rank)
        .collect();
    Scores {
        hr5: hit_rate_at(&ranks, 5),
        ndcg5: mean(5.0),
        hr10: hit_rate_at(&ranks, 10),
        ndcg10: mean(10.0),
        mgu: mgu(&unfairness),
        dgu: dgu(&unfairness),
        coverage: coverage(top(), items),
        gini: gini(&exposure),
        tail_hr10: hit_rate_at(&tail, 10),
        unfairness,
        gains: ranks.iter().map(|&rank| gain(rank, 10.0)).collect(),
    }
}

/// The `k` items of highest score, ties by item number; items of `masked` and scores that are no
/// number are left out.
pub fn top<T: PartialOrd + Copy>(scores: &[T], k: usize, masked: &[u32]) -> Vec<u32> {
    let mut best: Vec<(u32, T)> = Vec::with_capacity(k + 1);
    for (item, &score) in (0..).zip(scores) {
        let full = best.len() == k;
        // most items end here; later items lose ties
        if full && best.last().is_none_or(|&(_, last)| score <= last) || masked.contains(&item) {
            continue;
        }
        if score.partial_cmp(&score).is_none() {
            continue;
        }
        let at = best.partition_point(|&(_, other)| other >= score);
        best.insert(at, (item, score));
        best.truncate(k);
    }
    best.into_iter().map(|(item, _)| item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_unfairness_by_hand() {
        let groups = Groups::equal_count(&[0, 9, 3, 4], 2);
        assert_eq!((0..4).map(|item| groups.of(item)).collect::<Vec<_>>(), [0, 1, 0, 1]);
        let unfairness = group_unfairness(&[0.2, 0.8], &[0.5, 0.5]);
        assert!((mgu(&unfairness) - 0.3).abs() < 1e-12);
        assert!((dgu(&unfairness) - 0.6).abs() < 1e-12);
    }

    #[test]
    fn mirrored_histories_are_fair() {
        let groups = Groups::equal_count(&[0, 9, 3, 4], 2);
        let case = |history: Vec<u32>, target| Case { user: None, history, target };
        let cases = [case(vec![0, 1], 1), case(vec![2, 3], 0)];
        let scores = evaluate(&cases, &vec![vec![1, 0], vec![3, 2]], &groups, 4);
        assert_eq!((scores.mgu, scores.dgu), (0.0, 0.0));
        assert_eq!((scores.hr5, scores.ndcg10, scores.coverage), (0.5, 0.5, 1.0));
        // the only tail target, item 0, is not found
        assert_eq!(scores.tail_hr10, 0.0);
    }

    #[test]
    fn the_best_items_come_first() {
        assert_eq!(top(&[0.1, 0.9, 0.5, 0.9], 3, &[]), [1, 3, 2]);
        assert_eq!(top(&[0.1, 0.9, 0.5, 0.9], 3, &[3]), [1, 2, 0]);
    }
}
