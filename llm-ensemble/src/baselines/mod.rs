//! Every method compared with, in the signature of ours.

mod glad;
mod mace;

use common::{Error, Result};

pub use self::glad::glad;
pub use self::mace::mace;
use crate::model::vote;
use crate::train::{Consensus, Evidence, Method, Options, finish_vote};
use crate::votes::{Label, Votes};

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
    result.accuracy = agreement_with(votes, &result.label);
    result
}

/// Eq. 2 against given labels.
fn agreement_with(votes: &Votes, consensus: &[Label]) -> Vec<Option<f64>> {
    let mut agreed = vec![0.0; votes.workers.len()];
    for (item, &expected) in consensus.iter().enumerate() {
        for (worker, label) in votes.of(item) {
            agreed[worker] += f64::from(u8::from(label == expected));
        }
    }
    votes
        .votes_per_worker()
        .iter()
        .zip(agreed)
        .map(|(&total, agreed)| vote::agreement(agreed, total as f64, None))
        .collect()
}

/// Wawa ("worker agreement with aggregate", crowd-kit 1.4.2): agreement with the majority vote is
/// the weight of a second vote.
pub fn wawa(votes: &Votes, evidence: &Evidence, options: &Options) -> Consensus {
    let accuracy = majority_vote(votes, evidence, options).accuracy;
    let weights = accuracy.iter().map(|w| w.unwrap_or(0.0)).collect();
    finish_vote(votes, Method::Wawa, evidence, options, weights, accuracy)
}

/// Zero-based skill (crowd-kit 1.4.2): skills start at chance and move towards the agreement with
/// the weighted vote, 100 times, with a rate that halves every 20.
pub fn zero_based_skill(votes: &Votes, evidence: &Evidence, options: &Options) -> Consensus {
    const ROUNDS: usize = 100;
    let chance = 1.0 / votes.labels.len().max(1) as f64 + 1e-5;
    let mut skills = vec![chance; votes.workers.len()];
    let mut rate = 1.0;
    let mut accuracy = Vec::new();
    for round in 1..=ROUNDS {
        if round % 20 == 0 {
            rate *= 0.5;
        }
        let result = finish_vote(
            votes,
            Method::ZeroBasedSkill,
            evidence,
            options,
            skills.clone(),
            vec![None; skills.len()],
        );
        accuracy = agreement_with(votes, &result.label);
        for (skill, w) in skills.iter_mut().zip(&accuracy) {
            *skill += rate * (w.unwrap_or(0.0) - *skill);
        }
    }
    let mut result =
        finish_vote(votes, Method::ZeroBasedSkill, evidence, options, skills, accuracy);
    result.rounds = ROUNDS;
    result
}
