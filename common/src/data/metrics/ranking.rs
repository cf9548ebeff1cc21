//! Rankings: where the relevant items stand.

use std::collections::BTreeSet;

/// Normalised discounted cumulative gain of one query: linear gain, discount `1 / log2(rank + 1)`,
/// ranks above `k` count 0. Items with equal scores share their gains equally (McSherry and
/// Najork 2008), so an order among ties brings nothing. Ideal order by relevance. 0 without
/// relevant items (scikit-learn's `ndcg_score`).
///
/// # Panics
/// When the slices differ in length.
pub fn ndcg_at(relevance: &[f64], scores: &[f64], k: usize) -> f64 {
    let order = by_score(relevance, scores);
    let mut gain = 0.0;
    let mut rank = 1;
    for tied in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
        let mean = tied.iter().map(|&item| relevance[item]).sum::<f64>() / tied.len() as f64;
        gain += mean * (rank..rank + tied.len()).map(|rank| discount(rank, k)).sum::<f64>();
        rank += tied.len();
    }
    normalised(gain, relevance, k)
}

/// [`ndcg_at`] with ties in the order of the items (lower index first), scikit-learn's
/// `ignore_ties=True` up to its order among ties.
///
/// # Panics
/// When the slices differ in length.
pub fn ndcg_at_in_order(relevance: &[f64], scores: &[f64], k: usize) -> f64 {
    let order = by_score(relevance, scores);
    let gain = order.iter().zip(1..).map(|(&item, rank)| relevance[item] * discount(rank, k)).sum();
    normalised(gain, relevance, k)
}

/// Indices from high to low score, ties by index.
fn by_score(relevance: &[f64], scores: &[f64]) -> Vec<usize> {
    assert_eq!(relevance.len(), scores.len(), "one score per item");
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order
}

fn discount(rank: usize, k: usize) -> f64 {
    if rank > k { 0.0 } else { 1.0 / ((rank + 1) as f64).log2() }
}

fn normalised(gain: f64, relevance: &[f64], k: usize) -> f64 {
    let mut best = relevance.to_vec();
    best.sort_by(|a, b| b.total_cmp(a));
    let ideal: f64 = best.iter().zip(1..).map(|(gain, rank)| gain * discount(rank, k)).sum();
    if ideal == 0.0 { 0.0 } else { gain / ideal }
}

/// Expected 1-based rank of item `target` when equal scores are ordered at random:
/// `1 + #(higher) + #(other equal) / 2`. A constant scorer thus gets the middle, not the top.
///
/// # Panics
/// When `target` is not an index of `scores`.
pub fn rank_of(scores: &[f64], target: usize) -> f64 {
    let own = scores[target];
    let higher = scores.iter().filter(|&&score| score > own).count();
    let equal = scores.iter().filter(|&&score| score == own).count();
    1.0 + higher as f64 + (equal.max(1) - 1) as f64 / 2.0
}

/// Share of queries whose target stands at rank `k` or better; `None` = not ranked at all. NaN
/// without queries.
pub fn hit_rate_at(ranks: &[Option<f64>], k: usize) -> f64 {
    let hits = ranks.iter().flatten().filter(|&&rank| rank <= k as f64).count();
    hits as f64 / ranks.len() as f64
}

/// Mean reciprocal rank, 0 for a target that is not ranked or stands below `k`
/// (`usize::MAX` = no limit). NaN without queries.
pub fn mrr(ranks: &[Option<f64>], k: usize) -> f64 {
    let sum: f64 =
        ranks.iter().flatten().filter(|&&rank| rank <= k as f64).map(|rank| 1.0 / rank).sum();
    sum / ranks.len() as f64
}

/// Share of the distinct `relevant` items among the first `k` of `ranked`. NaN without relevant
/// items.
pub fn recall_at<T: Ord>(ranked: &[T], relevant: &[T], k: usize) -> f64 {
    let relevant: BTreeSet<&T> = relevant.iter().collect();
    let found: BTreeSet<&T> =
        ranked.iter().take(k).filter(|item| relevant.contains(item)).collect();
    found.len() as f64 / relevant.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn ndcg_by_hand() {
        // Relevant item second of three: 1/log2(3) over 1.
        close(ndcg_at(&[0.0, 1.0, 0.0], &[3.0, 2.0, 1.0], 3), 1.0 / 3f64.log2());
        close(ndcg_at(&[0.0, 1.0, 0.0], &[3.0, 2.0, 1.0], 1), 0.0);
        close(ndcg_at(&[0.0, 1.0], &[0.0, 0.0], 2), (1.0 + 1.0 / 3f64.log2()) / 2.0);
        close(ndcg_at_in_order(&[1.0, 0.0], &[0.0, 0.0], 2), 1.0);
        close(ndcg_at(&[0.0, 0.0], &[1.0, 2.0], 2), 0.0);
    }

    #[test]
    fn a_constant_scorer_stands_in_the_middle() {
        close(rank_of(&[0.0; 101], 0), 51.0);
        close(rank_of(&[0.9, 0.5, 0.5], 2), 2.5);
    }

    #[test]
    fn rates_by_hand() {
        let ranks = [Some(1.0), Some(4.0), None, Some(11.0)];
        close(hit_rate_at(&ranks, 10), 0.5);
        close(mrr(&ranks, usize::MAX), (1.0 + 0.25 + 1.0 / 11.0) / 4.0);
        close(mrr(&ranks, 10), 1.25 / 4.0);
        close(recall_at(&[1, 2, 2, 3], &[2, 3, 9], 3), 1.0 / 3.0);
    }
}
