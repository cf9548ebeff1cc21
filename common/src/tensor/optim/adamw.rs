//! AdamW ([Loshchilov and Hutter 2019](https://arxiv.org/abs/1711.05101)), fused and parallel.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Gradients;
use crate::nn::Parameters;
use crate::tensor::ops::kernel::simd;
use crate::{Error, Result};

/// | option | default | purpose | range |
/// |---|---|---|---|
/// | `beta1` | 0.9 | decay of the gradients' mean | [0, 1) |
/// | `beta2` | 0.999 | decay of the squared gradients' mean | [0, 1) |
/// | `eps` | 1e-8 | keeps the division finite | > 0 |
/// | `weight_decay` | 0.01 | decoupled decay, times the learning rate | ≥ 0 |
/// | `decay_vectors` | true | whether biases and norm weights (rank < 2) decay too, as in torch | |
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWOptions {
    /// See the table.
    pub beta1: f64,
    /// See the table.
    pub beta2: f64,
    /// See the table.
    pub eps: f64,
    /// See the table.
    pub weight_decay: f64,
    /// See the table.
    pub decay_vectors: bool,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, decay_vectors: true }
    }
}

/// The optimiser and its state. The learning rate is given at each step; see [`super::Schedule`].
#[derive(Debug)]
pub struct AdamW {
    parameters: Parameters,
    options: AdamWOptions,
    step: u64,
    /// Means of gradients and of squared gradients, in the parameters' order.
    moments: Vec<[Vec<f32>; 2]>,
}

impl AdamW {
    /// An optimiser of all `parameters` at step 0.
    pub fn new(parameters: &Parameters, options: AdamWOptions) -> Self {
        let zeros = |n: usize| vec![0f32; n];
        let moments =
            parameters.iter().map(|(_, var)| [zeros(var.elem_count()), zeros(var.elem_count())]);
        Self { moments: moments.collect(), parameters: parameters.clone(), options, step: 0 }
    }

    /// Steps taken so far.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// The parameters that are stepped.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// One step in place with learning rate `lr`; `gradients` must be of the same parameters.
    pub fn step(&mut self, gradients: &Gradients, lr: f64) -> Result<()> {
        if gradients.tensors().len() != self.parameters.len() {
            return Err(Error::Bug("gradients of other parameters than the optimiser's".into()));
        }
        self.step += 1;
        let AdamWOptions { beta1, beta2, eps, weight_decay, decay_vectors } = self.options;
        let steps = self.step as f64;
        let (correction1, correction2) = (1.0 - beta1.powf(steps), 1.0 - beta2.powf(steps));
        let state = self.parameters.iter().zip(&mut self.moments).zip(gradients.tensors());
        for (((name, var), moments), gradient) in state {
            if gradient.shape() != var.shape() {
                return Err(Error::Bug(format!("the gradient of {name} has another shape")));
            }
            let decay = if var.rank() < 2 && !decay_vectors { 0.0 } else { weight_decay };
            let update = Update {
                keep: (1.0 - lr * decay) as f32,
                gain1: (1.0 - beta1) as f32,
                beta2: beta2 as f32,
                gain2: (1.0 - beta2) as f32,
                rescale2: (1.0 / correction2.sqrt()) as f32,
                eps: eps as f32,
                size: (lr / correction1) as f32,
            };
            let step =
                Step { update, gradient: &gradient.contiguous()?, moments: Mutex::new(moments) };
            var.as_tensor().inplace_op1(&step)?;
        }
        Ok(())
    }

    /// The state for a checkpoint: `exp_avg.<name>` and `exp_avg_sq.<name>` (torch's words), shaped
    /// like the parameters. Keep [`AdamW::step_count`] with it.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for ((name, var), [first, second]) in self.parameters.iter().zip(&self.moments) {
            let tensor = |values: &[f32]| Tensor::from_slice(values, var.shape(), var.device());
            state.insert(format!("exp_avg.{name}"), tensor(first)?);
            state.insert(format!("exp_avg_sq.{name}"), tensor(second)?);
        }
        Ok(state)
    }

    /// Takes over a state of [`AdamW::state`] after `step` steps; nothing changes on an error.
    pub fn load_state(&mut self, step: u64, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let values = |key: String, count: usize| {
            let tensor = state.get(&key).filter(|tensor| tensor.elem_count() == count);
            let tensor = tensor.ok_or_else(|| {
                Error::asset(&key, "absent or of another size", "resume with the same model")
            })?;
            Ok::<_, Error>(tensor.flatten_all()?.to_vec1::<f32>()?)
        };
        let moments = self
            .parameters
            .iter()
            .map(|(name, var)| {
                let count = var.elem_count();
                Ok([
                    values(format!("exp_avg.{name}"), count)?,
                    values(format!("exp_avg_sq.{name}"), count)?,
                ])
            })
            .collect::<Result<_>>()?;
        (self.moments, self.step) = (moments, step);
        Ok(())
    }
}

/// Constants of one step of one parameter.
#[derive(Debug, Clone, Copy)]
struct Update {
    keep: f32,
    gain1: f32,
    beta2: f32,
    gain2: f32,
    rescale2: f32,
    eps: f32,
    size: f32,
}

/// Updates a variable where it lies.
struct Step<'a> {
    update: Update,
    gradient: &'a Tensor,
    moments: Mutex<&'a mut [Vec<f32>; 2]>,
}

impl InplaceOp1 for Step<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        const BLOCK: usize = 32 * 1024;
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            bail!("AdamW takes contiguous f32 parameters");
        };
        let gradient = crate::tensor::ops::Values::of(self.gradient);
        let gradient = gradient.get()?;
        let Ok(mut moments) = self.moments.lock() else { bail!("AdamW: an earlier step panicked") };
        let [first, second] = &mut **moments;
        values[start..end]
            .par_chunks_mut(BLOCK)
            .zip(first.par_chunks_mut(BLOCK))
            .zip(second.par_chunks_mut(BLOCK))
            .zip(gradient.par_chunks(BLOCK))
            .for_each(|(((value, first), second), gradient)| {
                update_block(value, first, second, gradient, self.update);
            });
        Ok(())
    }
}

simd! {
    fn update_block(value: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32], u: Update) {
        let state = value.iter_mut().zip(first).zip(second).zip(gradient);
        for (((value, first), second), &g) in state {
            *first += u.gain1 * (g - *first);
            *second = *second * u.beta2 + u.gain2 * g * g;
            *value = *value * u.keep - u.size * (*first / (second.sqrt() * u.rescale2 + u.eps));
        }
    }
}
