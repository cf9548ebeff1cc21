//! The methods compared with, all as lists of recommended items per case, and the two decoding
//! variants of ours that need no training.

use common::Result;
use common::recommend::{Bpr, Gru4rec, ItemKnn, Markov, Popularity, Sasrec};

use crate::data::{Case, Dataset};
use crate::decode::Ranked;
use crate::eval::{Lists, top};

/// Items kept per case.
pub const KEPT: usize = 10;

/// What a case must not be recommended.
pub fn masked<'a>(data: &Dataset, case: &'a Case) -> &'a [u32] {
    if data.repeats { &[] } else { &case.history }
}

/// Top lists from one score per item and case.
fn lists(data: &Dataset, cases: &[Case], scores: impl Fn(&Case) -> Vec<f32>) -> Lists {
    cases.iter().map(|case| top(&scores(case), KEPT, masked(data, case))).collect()
}

/// The most popular items for everyone.
///
/// # Errors
/// None on a valid data set.
pub fn popularity(data: &Dataset, cases: &[Case]) -> Result<Lists> {
    let model = Popularity::fit(&data.train, data.items())?;
    Ok(lists(data, cases, |_| model.scores().to_vec()))
}

/// First-order Markov chain of the training sequences, filled up by popularity.
pub fn markov(data: &Dataset, cases: &[Case], model: &Markov) -> Lists {
    lists(data, cases, |case| model.scores(&case.history))
}

/// Item-based nearest neighbours.
///
/// # Errors
/// None on a valid data set.
pub fn item_knn(
    data: &Dataset,
    cases: &[Case],
    options: common::recommend::ItemKnnOptions,
) -> Result<Lists> {
    let model = ItemKnn::fit(&data.train, data.items(), options)?;
    Ok(lists(data, cases, |case| model.scores(&case.history)))
}

/// Matrix factorisation; a user without training events gets the item biases.
pub fn bpr(data: &Dataset, cases: &[Case], model: &Bpr) -> Lists {
    lists(data, cases, |case| model.scores(case.user.unwrap_or(usize::MAX / 2)))
}

/// A neural sequence model's lists.
///
/// # Errors
/// Those of candle.
pub fn sasrec(data: &Dataset, cases: &[Case], model: &Sasrec) -> Result<Lists> {
    sequence(data, cases, |histories| model.scores(histories))
}

/// A recurrent sequence model's lists.
///
/// # Errors
/// Those of candle.
pub fn gru4rec(data: &Dataset, cases: &[Case], model: &Gru4rec) -> Result<Lists> {
    sequence(data, cases, |histories| model.scores(histories))
}

fn sequence(
    data: &Dataset,
    cases: &[Case],
    scores: impl Fn(&[&[u32]]) -> Result<Vec<Vec<f32>>>,
) -> Result<Lists> {
    let mut all = Vec::with_capacity(cases.len());
    for part in cases.chunks(256) {
        let histories: Vec<&[u32]> = part.iter().map(|case| case.history.as_slice()).collect();
        for (case, scores) in part.iter().zip(scores(&histories)?) {
            all.push(top(&scores, KEPT, masked(data, case)));
        }
    }
    Ok(all)
}

/// The first items of what a generator found, seen ones left out.
pub fn generated(data: &Dataset, cases: &[Case], ranked: &[Ranked]) -> Lists {
    let list = |(case, found): (&Case, &Ranked)| {
        let masked = masked(data, case);
        let fresh = found.iter().map(|&(item, _)| item).filter(|item| !masked.contains(item));
        fresh.take(KEPT).collect()
    };
    cases.iter().zip(ranked).map(list).collect()
}

/// How [`rescored`] changes a generator's order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rescoring {
    /// Strength α of the popularity-aware prior.
    pub alpha: f64,
    /// Share β of the transition counts.
    pub share: f64,
}

/// Two changes of ours to the ranking that need no training. A mixture with the Markov chain, `m(i)
/// = (1 − β) · p(i | history) + β · q(i | last item)`: the generator knows the history, the chain
/// knows exact pairs. And popularity-aware decoding (after the logit adjustment of Menon et al.
/// 2021): items in order of `ln m(i) − α · ln(1 + freq(i))`.
pub fn rescored(
    data: &Dataset,
    cases: &[Case],
    ranked: &[Ranked],
    markov: &Markov,
    counts: &[u64],
    rescoring: Rescoring,
) -> Lists {
    let Rescoring { alpha, share } = rescoring;
    // the order of ln m − α ln(1 + freq) without a logarithm per item
    let prior: Vec<f64> = counts.iter().map(|&n| (n as f64 + 1.0).powf(-alpha)).collect();
    let list = |(case, found): (&Case, &Ranked)| {
        let mut scores = vec![0.0; prior.len()];
        if share > 0.0 {
            let transitions = markov.scores(&case.history);
            let total: f64 = transitions.iter().map(|&score| f64::from(score)).sum();
            for (score, &count) in scores.iter_mut().zip(&transitions) {
                *score = share * f64::from(count) / total;
            }
        }
        found.iter().for_each(|&(item, log)| scores[item as usize] += (1.0 - share) * log.exp());
        scores.iter_mut().zip(&prior).for_each(|(score, prior)| *score *= prior);
        let mut list = top(&scores, KEPT, masked(data, case));
        // what neither knows of is not recommended
        list.retain(|&item| scores[item as usize] > 0.0);
        list
    };
    cases.iter().zip(ranked).map(list).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rescoring_by_hand() {
        let mut data = crate::data::synthetic(4, 3, 2, common::rng::Seed::new(1));
        data.train = vec![vec![0, 3], vec![0, 3], vec![1, 2]];
        let cases = [Case { user: None, history: vec![0], target: 3 }];
        let ranked = vec![vec![(1, 0.5f64.ln()), (2, 0.3f64.ln()), (3, 0.2f64.ln())]];
        let markov = Markov::fit(&data.train, 4).unwrap();
        let counts = [2, 40, 1, 2];
        let list = |alpha, share| {
            let rescoring = Rescoring { alpha, share };
            rescored(&data, &cases, &ranked, &markov, &counts, rescoring)[0].clone()
        };
        assert_eq!(list(0.0, 0.0), [1, 2, 3]);
        assert_eq!(list(0.0, 0.0), generated(&data, &cases, &ranked)[0]);
        // 0.5 / 41^0.5 = 0.078, 0.3 / 2^0.5 = 0.212, 0.2 / 3^0.5 = 0.115
        assert_eq!(list(0.5, 0.0), [2, 3, 1]);
        // the chain saw 0 → 3 twice
        assert_eq!(list(0.0, 0.9)[0], 3);
    }
}
