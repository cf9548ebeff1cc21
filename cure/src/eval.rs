//! Measures: how good the recommendations are, how near an unlearned model is to a retrained one,
//! what an attacker can tell.

use candle_core::Tensor;
use common::lm::Lm;
use common::optim::Workers;
use common::stats;
use common::{Result, metrics, ops};
use serde::{Deserialize, Serialize};

use crate::model::Recommender;
use crate::model::recommender::Batch;
use crate::prompt::{Prompt, labels};

/// Prompts of one pass.
const BATCH: usize = 64;

/// p(Yes) of every answer, in order: softmax over the two answer tokens.
///
/// # Errors
/// Those of the passes.
pub fn predict(lm: &Lm, prompts: &[Prompt], workers: &Workers) -> Result<Vec<f64>> {
    let model = Recommender { lm: lm.frozen()? };
    // prompts of like length share a pass, which saves padding
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|&at| prompts[at].ids.len());
    let passes: Vec<&[usize]> = order.chunks(BATCH).collect();
    let logits = workers.map(passes.len(), |pass| {
        let batch = Batch::new(passes[pass].iter().map(|&at| &prompts[at]))?;
        Ok(model.answer_logits(&batch)?.to_vec2::<f32>()?)
    })?;
    let mut logits = logits.into_iter().flatten();
    let mut yes: Vec<Vec<f64>> = vec![Vec::new(); prompts.len()];
    for at in order {
        let own = logits.by_ref().take(prompts[at].answers.len());
        yes[at] = own.map(|l| sigmoid(f64::from(l[1]) - f64::from(l[0]))).collect();
    }
    Ok(yes.concat())
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Probabilities of the whole vocabulary at every answer, `[answers][tokens]`.
///
/// # Errors
/// Those of the passes.
pub fn predict_full(lm: &Lm, prompts: &[Prompt]) -> Result<Vec<Vec<f32>>> {
    let model = Recommender { lm: lm.frozen()? };
    let mut all = Vec::new();
    for part in prompts.chunks(BATCH) {
        let logits: Tensor = model.full_logits(&Batch::new(part)?)?;
        let (answers, tokens) = logits.dims2()?;
        let four = logits.reshape((answers, 1, 1, tokens))?;
        let p = ops::softmax(&four, &ops::SoftmaxOptions::default())?.reshape((answers, tokens))?;
        all.extend(p.to_vec2::<f32>()?);
    }
    Ok(all)
}

/// Quality of recommendations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Area under the ROC curve.
    pub auc: f64,
    /// Share of right answers at p(Yes) ≥ 0.5.
    pub accuracy: f64,
    /// Mean −ln p(right answer).
    pub log_loss: f64,
    /// Expected calibration error, 15 bins.
    pub ece: f64,
}

impl Quality {
    /// Of p(Yes) against the labels.
    pub fn of(labels: &[bool], yes: &[f64]) -> Self {
        let right = labels.iter().zip(yes).filter(|(label, p)| **label == (**p >= 0.5)).count();
        Self {
            auc: metrics::auc(labels, yes, None),
            accuracy: right as f64 / labels.len() as f64,
            log_loss: metrics::log_loss(labels, yes, None),
            ece: metrics::ece(labels, yes),
        }
    }
}

/// −p ln p, 0 at 0.
fn plogp(p: f64) -> f64 {
    if p > 0.0 { -p * p.ln() } else { 0.0 }
}

/// Jensen–Shannon divergence over {Yes, No}: `H((p+q)/2) − (H(p)+H(q))/2`, in nats, the mean over the
/// answers; 0 to ln 2.
///
/// # Panics
/// When the slices differ in length.
pub fn jsd(p: &[f64], q: &[f64]) -> f64 {
    assert_eq!(p.len(), q.len(), "one probability per answer");
    let entropy = |p: f64| plogp(p) + plogp(1.0 - p);
    let each = p.iter().zip(q).map(|(&p, &q)| {
        // rounding must not make it negative
        (entropy((p + q) / 2.0) - (entropy(p) + entropy(q)) / 2.0).max(0.0)
    });
    each.sum::<f64>() / p.len() as f64
}

/// Mean KL(p ‖ q) over {Yes, No}, in nats; q is clipped to 1e-12.
///
/// # Panics
/// When the slices differ in length.
pub fn kl(p: &[f64], q: &[f64]) -> f64 {
    assert_eq!(p.len(), q.len(), "one probability per answer");
    let term = |p: f64, q: f64| if p > 0.0 { p * (p / q.max(1e-12)).ln() } else { 0.0 };
    let each = p.iter().zip(q).map(|(&p, &q)| term(p, q) + term(1.0 - p, 1.0 - q));
    each.sum::<f64>() / p.len() as f64
}

/// Mean Euclidean distance of the distributions over {Yes, No}: √2 · |p − q|.
///
/// # Panics
/// When the slices differ in length.
pub fn l2(p: &[f64], q: &[f64]) -> f64 {
    assert_eq!(p.len(), q.len(), "one probability per answer");
    let each = p.iter().zip(q).map(|(p, q)| 2f64.sqrt() * (p - q).abs());
    each.sum::<f64>() / p.len() as f64
}

/// Half the Jeffreys divergence over the whole vocabulary, `½ KL(p ‖ q) + ½ KL(q ‖ p)` with ε = 1e-12
/// added inside the logarithms: what E2URec's evaluator computes under the name JSD.
///
/// # Panics
/// When the slices differ in length.
pub fn jeffreys_half_fullvocab(p: &[Vec<f32>], q: &[Vec<f32>]) -> f64 {
    assert_eq!(p.len(), q.len(), "one distribution per answer");
    let one = |p: &Vec<f32>, q: &Vec<f32>| -> f64 {
        p.iter()
            .zip(q)
            .map(|(&p, &q)| {
                let (p, q) = (f64::from(p), f64::from(q));
                0.5 * (p - q) * ((p + 1e-12) / (q + 1e-12)).ln()
            })
            .sum()
    };
    p.iter().zip(q).map(|(p, q)| one(p, q)).sum::<f64>() / p.len() as f64
}

/// Loss-threshold membership attack: AUC of −loss for members (D_f) against never-seen records. The
/// target is the value of a retrained model, not 0.5: users differ in how predictable they are.
pub fn membership_auc(members: (&[bool], &[f64]), others: (&[bool], &[f64])) -> f64 {
    let loss = |(labels, yes): (&[bool], &[f64])| -> Vec<f64> {
        let of = |(&label, &p): (&bool, &f64)| if label { p } else { 1.0 - p };
        labels.iter().zip(yes).map(of).collect()
    };
    let (members, others) = (loss(members), loss(others));
    let is_member: Vec<bool> =
        members.iter().map(|_| true).chain(others.iter().map(|_| false)).collect();
    metrics::auc(&is_member, &[members, others].concat(), None)
}

/// Rank correlation; ties share their mean rank.
///
/// # Panics
/// When the slices differ in length.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "pairs of values");
    let (a, b) = (stats::average_ranks(a), stats::average_ranks(b));
    let ((mean_a, sd_a), (mean_b, sd_b)) = (stats::mean_sd(&a), stats::mean_sd(&b));
    let products = a.iter().zip(&b).map(|(a, b)| (a - mean_a) * (b - mean_b));
    products.sum::<f64>() / (a.len() as f64 - 1.0) / (sd_a * sd_b)
}

/// A set of prompts with its labels.
#[derive(Debug, Clone)]
pub struct Part {
    /// The prompts.
    pub prompts: Vec<Prompt>,
    /// Labels of all answers.
    pub labels: Vec<bool>,
}

impl Part {
    /// The prompts with their labels.
    pub fn new(prompts: Vec<Prompt>) -> Self {
        let labels = labels(&prompts);
        Self { prompts, labels }
    }

    /// Quality of a model on it.
    ///
    /// # Errors
    /// Those of the passes.
    pub fn quality(&self, lm: &Lm, workers: &Workers) -> Result<Quality> {
        Ok(Quality::of(&self.labels, &predict(lm, &self.prompts, workers)?))
    }
}
