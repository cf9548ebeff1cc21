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
///
/// # Errors
/// None on a valid data set.
pub fn markov(data: &Dataset, cases: &[Case]) -> Result<Lists> {
    let model = Markov::fit(&data.train, data.items())?;
    Ok(lists(data, cases, |case| model.scores(&case.history)))
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
    reranked(data, cases, ranked, |_, log| log)
}

/// Popularity-aware decoding (ours, after the logit adjustment of Menon et al. 2021): the found
/// items in order of `log p(i) − alpha · ln(1 + freq(i))`.
pub fn adjusted(
    data: &Dataset,
    cases: &[Case],
    ranked: &[Ranked],
    counts: &[u64],
    alpha: f64,
) -> Lists {
    reranked(data, cases, ranked, |item, log| log - alpha * (counts[item as usize] as f64).ln_1p())
}

fn reranked(
    data: &Dataset,
    cases: &[Case],
    ranked: &[Ranked],
    score: impl Fn(u32, f64) -> f64,
) -> Lists {
    cases
        .iter()
        .zip(ranked)
        .map(|(case, found)| {
            let masked = masked(data, case);
            let mut scored: Vec<(u32, f64)> = found
                .iter()
                .filter(|(item, _)| !masked.contains(item))
                .map(|&(item, log)| (item, score(item, log)))
                .collect();
            // a stable sort: ties stay in the beam's order
            scored.sort_by(|a, b| b.1.total_cmp(&a.1));
            scored.into_iter().take(KEPT).map(|(item, _)| item).collect()
        })
        .collect()
}

/// The generator mixed with training transitions (ours): `(1 − share) · p(i | history) + share ·
/// q(i | last item)`, where q are the Markov chain's transition shares. The generator knows the
/// history, the chain knows exact pairs.
///
/// # Errors
/// None on a valid data set.
pub fn mixed(data: &Dataset, cases: &[Case], ranked: &[Ranked], share: f64) -> Result<Lists> {
    let model = Markov::fit(&data.train, data.items())?;
    let list = |(case, found): (&Case, &Ranked)| {
        let mut scores = model.scores(&case.history);
        let total: f32 = scores.iter().sum();
        scores.iter_mut().for_each(|score| *score *= share as f32 / total.max(f32::MIN_POSITIVE));
        for &(item, log) in found {
            scores[item as usize] += ((1.0 - share) * log.exp()) as f32;
        }
        top(&scores, KEPT, masked(data, case))
    };
    Ok(cases.iter().zip(ranked).map(list).collect())
}
