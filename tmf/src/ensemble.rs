//! Rankers joined by weights that are learnt on validation questions (ours, not in the paper).

use common::{Error, Result};
use serde::{Deserialize, Serialize};

/// Weight of each member, on scores standardised within a question; a conditional logit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ensemble {
    /// One weight per member.
    pub weights: Vec<f64>,
    /// The member that alone is used, if none of the joint weights did better in cross-validation.
    pub single: Option<usize>,
}

/// Scores of a member: per question, per candidate.
pub type Scores = Vec<Vec<f64>>;

const FOLDS: usize = 5;
const ROUNDS: usize = 300;
const PENALTY: f64 = 1e-3;

impl Ensemble {
    /// Learns weights from the members' scores on validation questions whose answers stand at
    /// `positives`. If in five-fold cross-validation the joint ranking has fewer hits at 1 than the
    /// best member, that member alone is the ensemble: on validation it is never worse.
    ///
    /// # Errors
    /// [`Error::Usage`] without members or questions, [`Error::Bug`] for scores of other lengths.
    pub fn fit(members: &[&Scores], positives: &[usize]) -> Result<Self> {
        if members.is_empty() || positives.is_empty() {
            return Err(Error::usage("an ensemble needs a member and a validation question"));
        }
        if members.iter().any(|scores| scores.len() != positives.len()) {
            return Err(Error::Bug("members scored other questions".into()));
        }
        let features: Vec<Vec<Vec<f64>>> =
            (0..positives.len()).map(|at| features(members, at)).collect();
        let all: Vec<usize> = (0..positives.len()).collect();
        let mut hits = 0.0;
        for fold in 0..FOLDS {
            let train: Vec<usize> = all.iter().copied().filter(|at| at % FOLDS != fold).collect();
            let weights = logit(&features, positives, &train, members.len());
            let held = all.iter().filter(|at| *at % FOLDS == fold);
            hits += held.map(|&at| hit(&features[at], &weights, positives[at])).sum::<f64>();
        }
        let alone = |member: usize| {
            let mut weights = vec![0.0; members.len()];
            weights[member] = 1.0;
            let hits: f64 = all.iter().map(|&at| hit(&features[at], &weights, positives[at])).sum();
            hits
        };
        let best = (0..members.len())
            .map(|m| (m, alone(m)))
            .fold((0, f64::MIN), |best, now| if now.1 > best.1 { now } else { best });
        let mut weights = logit(&features, positives, &all, members.len());
        let single = (best.1 > hits).then_some(best.0);
        if let Some(single) = single {
            weights = vec![0.0; members.len()];
            weights[single] = 1.0;
        }
        Ok(Self { weights, single })
    }

    /// Joint scores of all questions.
    pub fn scores(&self, members: &[&Scores]) -> Scores {
        let questions = members.first().map_or(0, |scores| scores.len());
        (0..questions)
            .map(|at| features(members, at).iter().map(|row| dot(row, &self.weights)).collect())
            .collect()
    }

    /// Probabilities of the candidates under the fitted logit; they sum to 1 per question.
    pub fn probabilities(&self, members: &[&Scores]) -> Scores {
        self.scores(members).iter().map(|scores| softmax(scores)).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// e^x over its sum.
pub fn softmax(scores: &[f64]) -> Vec<f64> {
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let parts: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
    let total: f64 = parts.iter().sum();
    parts.into_iter().map(|part| part / total).collect()
}

/// The temperature under which the softmax of the scores gives the answers the highest likelihood
/// (Guo et al. 2017): golden-section search of its logarithm between 1/20 and 20. 1 without questions.
pub fn temperature(scores: &Scores, positives: &[usize]) -> f64 {
    if positives.is_empty() {
        return 1.0;
    }
    let loss = |log: f64| -> f64 {
        let of = |(scores, &positive): (&Vec<f64>, &usize)| {
            let scaled: Vec<f64> = scores.iter().map(|score| score / log.exp()).collect();
            -softmax(&scaled)[positive].max(1e-300).ln()
        };
        scores.iter().zip(positives).map(of).sum()
    };
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (-20f64.ln(), 20f64.ln());
    for _ in 0..40 {
        let (a, b) = (high - golden * (high - low), low + golden * (high - low));
        if loss(a) < loss(b) { high = b } else { low = a }
    }
    ((low + high) / 2.0).exp()
}

/// Per candidate of question `at`: each member's score minus its mean, over its deviation.
fn features(members: &[&Scores], at: usize) -> Vec<Vec<f64>> {
    let candidates = members.first().map_or(0, |scores| scores[at].len());
    let mut rows = vec![Vec::with_capacity(members.len()); candidates];
    for member in members {
        let scores = &member[at];
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        let variance = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / scores.len() as f64;
        let deviation = variance.sqrt().max(1e-12);
        for (row, score) in rows.iter_mut().zip(scores) {
            row.push((score - mean) / deviation);
        }
    }
    rows
}

/// Credit at 1 with ties shared.
fn hit(features: &[Vec<f64>], weights: &[f64], positive: usize) -> f64 {
    let scores: Vec<f64> = features.iter().map(|row| dot(row, weights)).collect();
    f64::from(common::metrics::rank_of(&scores, positive) <= 1.0)
}

/// Conditional logit by Newton-like ascent (diagonal steps), small L2 penalty, from equal weights.
fn logit(
    features: &[Vec<Vec<f64>>],
    positives: &[usize],
    questions: &[usize],
    members: usize,
) -> Vec<f64> {
    let mut weights = vec![1.0 / members as f64; members];
    for _ in 0..ROUNDS {
        let mut gradient = vec![0.0; members];
        let mut curvature = vec![PENALTY; members];
        for &at in questions {
            let rows = &features[at];
            let scores: Vec<f64> = rows.iter().map(|row| dot(row, &weights)).collect();
            let shares = softmax(&scores);
            for member in 0..members {
                let mean: f64 = rows.iter().zip(&shares).map(|(row, p)| p * row[member]).sum();
                let square: f64 =
                    rows.iter().zip(&shares).map(|(row, p)| p * row[member].powi(2)).sum();
                gradient[member] += rows[positives[at]][member] - mean;
                curvature[member] += square - mean * mean;
            }
        }
        let mut largest: f64 = 0.0;
        for member in 0..members {
            let slope = gradient[member] - PENALTY * weights[member];
            // members agree with each other, so a full diagonal step overshoots
            let step = slope / curvature[member] / members as f64;
            weights[member] += step;
            largest = largest.max(step.abs());
        }
        if largest < 1e-6 {
            break;
        }
    }
    weights
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use common::rng::Seed;

    /// Two members that each see half of the truth, and one of noise.
    fn members() -> (Scores, Scores, Scores, Vec<usize>) {
        let mut stream = Seed::new(1).stream("ensemble");
        let (mut a, mut b, mut noise, mut positives) = (vec![], vec![], vec![], vec![]);
        for _ in 0..400 {
            let positive = stream.below(10);
            let mut draw = |pull: f64| -> Vec<f64> {
                (0..10)
                    .map(|at| stream.normal() + if at == positive { pull } else { 0.0 })
                    .collect()
            };
            a.push(draw(1.5));
            b.push(draw(1.5));
            noise.push(draw(0.0));
            positives.push(positive);
        }
        (a, b, noise, positives)
    }

    fn hits(scores: &Scores, positives: &[usize]) -> f64 {
        let hits = scores.iter().zip(positives);
        hits.filter(|(s, p)| common::metrics::rank_of(s, **p) <= 1.0).count() as f64
    }

    #[test]
    fn two_halves_beat_each_and_noise_gets_no_weight() {
        let (a, b, noise, positives) = members();
        let ensemble = Ensemble::fit(&[&a, &b, &noise], &positives).unwrap();
        assert_eq!(ensemble.single, None);
        assert!(ensemble.weights[2].abs() < 0.2 * ensemble.weights[0], "{ensemble:?}");
        let joint = hits(&ensemble.scores(&[&a, &b, &noise]), &positives);
        assert!(joint > hits(&a, &positives) + 20.0 && joint > hits(&b, &positives) + 20.0);
        let sums = ensemble.probabilities(&[&a, &b, &noise]);
        assert!(sums.iter().all(|p| (p.iter().sum::<f64>() - 1.0).abs() < 1e-9));
    }

    #[test]
    fn a_temperature_undoes_a_scale() {
        // the truth follows the softmax of these scores, so three times them asks for 3
        let mut stream = Seed::new(2).stream("temperature");
        let scores: Scores =
            (0..4000).map(|_| (0..5).map(|_| 1.5 * stream.normal()).collect()).collect();
        let positives: Vec<usize> =
            scores.iter().map(|scores| stream.weighted(&softmax(scores))).collect();
        let thrice = scores.iter().map(|s| s.iter().map(|x| 3.0 * x).collect()).collect();
        assert!((temperature(&scores, &positives) - 1.0).abs() < 0.08);
        assert!((temperature(&thrice, &positives) - 3.0).abs() < 0.24);
        assert_eq!(temperature(&Vec::new(), &[]), 1.0);
    }

    #[test]
    fn a_harmful_member_leaves_the_best_alone() {
        let (a, _, _, positives) = members();
        let constant: Scores = a.iter().map(|row| vec![0.0; row.len()]).collect();
        let ensemble = Ensemble::fit(&[&constant, &a], &positives).unwrap();
        assert!(hits(&ensemble.scores(&[&constant, &a]), &positives) >= hits(&a, &positives));
        assert!(Ensemble::fit(&[], &positives).is_err());
    }
}
