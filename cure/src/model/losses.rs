//! Losses on answer logits `[answers, 2]` (columns No, Yes). The forget loss of CURE is not public;
//! all of these are choices of ours or of the work that the items cite.

use candle_core::Tensor;
use common::{Result, ops};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is minimised on the forget set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(rename_all = "kebab-case")]
pub enum ForgetLoss {
    /// Gradient ascent: −CE. Unbounded.
    Ga,
    /// Negative preference optimisation ([Zhang et al. 2024](https://arxiv.org/abs/2404.05868)).
    Npo,
    /// KL to what the original model answers to the prompt's counterfactual. Bounded.
    #[default]
    CfKl,
    /// KL to the uniform distribution.
    UniformKl,
    /// KL to a teacher in the manner of E2URec: the original's logits lowered where further training
    /// on the forget set raised them.
    E2urec,
}

impl ForgetLoss {
    /// Other models whose answers it needs.
    pub fn teachers(self) -> usize {
        match self {
            Self::Ga | Self::UniformKl => 0,
            Self::Npo | Self::CfKl => 1,
            Self::E2urec => 2,
        }
    }
}

/// Mean cross-entropy of the answers.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    Ok(ops::cross_entropy(logits, labels, &Default::default())?)
}

/// Cross-entropy of every answer, `[answers]`.
fn each(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let options =
        ops::CrossEntropyOptions { reduction: ops::Reduction::None, ..Default::default() };
    Ok(ops::cross_entropy(logits, labels, &options)?)
}

/// `ga`: −CE.
pub fn gradient_ascent(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    Ok(cross_entropy(logits, labels)?.neg()?)
}

/// `npo`: `(2/β) E log(1 + (p_θ(y|x) / p_0(y|x))^β)`.
pub fn npo(logits: &Tensor, original: &Tensor, labels: &Tensor, beta: f64) -> Result<Tensor> {
    // the exponent is β (log p_θ − log p_0) = β (CE_0 − CE_θ), and log(1 + e^z) is BCE against 0
    let ratio = ((each(&original.detach(), labels)? - each(logits, labels)?)? * beta)?;
    let zeros = ratio.zeros_like()?.detach();
    Ok((ops::bce_with_logits(&ratio, &zeros, &ops::BceOptions::default())? * (2.0 / beta))?)
}

/// `KL(target ‖ p_θ)`, the target fixed; the mean over the answers.
pub fn kl_to(target: &Tensor, logits: &Tensor) -> Result<Tensor> {
    Ok(ops::kl_divergence(&target.detach(), logits, ops::Reduction::Mean)?)
}

/// `uniform-kl`.
pub fn uniform_kl(logits: &Tensor) -> Result<Tensor> {
    kl_to(&logits.zeros_like()?, logits)
}

/// Teacher of `e2urec`: `l_0 − a · ReLU(l_aug − l_0)`.
pub fn e2urec_teacher(original: &Tensor, augmented: &Tensor, a: f64) -> Result<Tensor> {
    Ok((original - ((augmented - original)?.relu()? * a)?)?.detach())
}

/// Retain loss: `CE + μ KL(p_0 ‖ p_θ)`.
pub fn retain(logits: &Tensor, original: &Tensor, labels: &Tensor, mu: f64) -> Result<Tensor> {
    let ce = cross_entropy(logits, labels)?;
    if mu == 0.0 {
        return Ok(ce);
    }
    Ok((ce + (kl_to(original, logits)? * mu)?)?)
}
