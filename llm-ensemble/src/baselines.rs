//! Every method compared with, in the signature of ours.

use common::{Error, Result};

use crate::train::{Consensus, Evidence, Method, Options, finish_vote};
use crate::votes::Votes;

/// Majority vote: Eq. 1 with weight 1 for everyone.
pub fn majority_vote(votes: &Votes, evidence: &Evidence, options: &Options) -> Consensus {
    let workers = votes.workers.len();
    let result =
        finish_vote(votes, Method::Mv, evidence, options, vec![1.0; workers], vec![None; workers]);
    with_agreement(votes, result)
}

/// Weighted vote: Eq. 1 with given weights.
///
/// # Errors
/// No weights in `evidence`.
pub fn weighted_vote(votes: &Votes, evidence: &Evidence, options: &Options) -> Result<Consensus> {
    if evidence.weights.len() != votes.workers.len() {
        return Err(Error::usage("the weighted vote needs one weight per worker; give weights"));
    }
    let weights = evidence.weights.clone();
    let accuracy = vec![None; weights.len()];
    Ok(with_agreement(votes, finish_vote(votes, Method::Wmv, evidence, options, weights, accuracy)))
}

/// Fills in Eq. 2, each worker's agreement with the consensus.
fn with_agreement(votes: &Votes, mut result: Consensus) -> Consensus {
    let mut agreed = vec![0.0; votes.workers.len()];
    for item in 0..votes.items.len() {
        for (worker, label) in votes.of(item) {
            agreed[worker] += f64::from(u8::from(label == result.label[item]));
        }
    }
    result.accuracy = votes
        .votes_per_worker()
        .iter()
        .zip(agreed)
        .map(|(&total, agreed)| crate::model::vote::agreement(agreed, total as f64, None))
        .collect();
    result
}
