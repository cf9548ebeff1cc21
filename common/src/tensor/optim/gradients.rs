//! One gradient per parameter.

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use crate::nn::Parameters;
use crate::ops;
use crate::tensor::ops::Values;
use crate::tensor::ops::kernel::{add, map_rows};
use crate::{Error, Result};

/// Gradients in the order of the [`Parameters`] they belong to.
#[derive(Debug, Clone)]
pub struct Gradients {
    tensors: Vec<Tensor>,
}

impl Gradients {
    /// Gradients of a scalar loss. A parameter that the loss does not reach is an error that names
    /// it: candle loses gradients silently. Use [`Parameters::filter`] to leave out on purpose.
    pub fn of(loss: &Tensor, parameters: &Parameters) -> Result<Self> {
        let mut found = ops::backward(loss)?;
        Self::collect(parameters, |var| found.remove(var))
    }

    /// The parameters' gradients among those of a backward pass; errors as in [`Gradients::of`].
    pub fn from_store(store: &GradStore, parameters: &Parameters) -> Result<Self> {
        Self::collect(parameters, |var| store.get(var).map(Tensor::contiguous).transpose())
    }

    fn collect(
        parameters: &Parameters,
        mut gradient_of: impl FnMut(&Var) -> candle_core::Result<Option<Tensor>>,
    ) -> Result<Self> {
        let tensors = parameters
            .iter()
            .map(|(name, var)| match gradient_of(var)? {
                Some(gradient) => Ok(gradient),
                None => Err(Error::Bug(format!(
                    "no gradient reaches parameter {name}; use it in the loss or filter it out"
                ))),
            })
            .collect::<Result<_>>()?;
        Ok(Self { tensors })
    }

    /// Given gradients; there must be one per parameter, of its shape.
    pub fn from_tensors(tensors: Vec<Tensor>, parameters: &Parameters) -> Result<Self> {
        let fits = tensors.len() == parameters.len()
            && parameters.iter().zip(&tensors).all(|((_, var), t)| var.shape() == t.shape());
        if !fits {
            return Err(Error::Bug("gradients and parameters differ in number or shape".into()));
        }
        Ok(Self { tensors })
    }

    /// The gradients, in the parameters' order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Sum of the slices' gradients, added in order in one pass over memory.
    pub(super) fn sum(slices: &[Self]) -> Result<Self> {
        let [first, others @ ..] = slices else {
            return Err(Error::usage("gradients of 0 slices; use at least 1"));
        };
        if others.is_empty() {
            return Ok(first.clone());
        }
        let tensors = first.tensors.iter().enumerate().map(|(at, tensor)| {
            if tensor.dtype() != DType::F32 || !tensor.device().is_cpu() {
                return others.iter().try_fold(tensor.clone(), |sum, s| sum + &s.tensors[at]);
            }
            let parts: Vec<Values> = slices.iter().map(|s| Values::of(&s.tensors[at])).collect();
            let parts = parts.iter().map(Values::get).collect::<candle_core::Result<Vec<_>>>()?;
            let sum = map_rows(tensor.elem_count(), 1, 1, |range, out| {
                out.copy_from_slice(&parts[0][range.clone()]);
                parts[1..].iter().for_each(|part| add(out, &part[range.clone()]));
            });
            Tensor::from_vec(sum, tensor.shape(), tensor.device())
        });
        Ok(Self { tensors: tensors.collect::<candle_core::Result<_>>()? })
    }

    /// Adds `other`, for accumulation over batches or slices.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        if self.tensors.len() != other.tensors.len() {
            return Err(Error::Bug("gradients of different parameters can't be added".into()));
        }
        for (mine, other) in self.tensors.iter_mut().zip(&other.tensors) {
            *mine = (&*mine + other)?;
        }
        Ok(())
    }

    /// Multiplies all by `factor`.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        for tensor in &mut self.tensors {
            *tensor = (&*tensor * factor)?;
        }
        Ok(())
    }

    /// Euclidean norm of all gradients together.
    pub fn global_norm(&self) -> Result<f64> {
        let mut total = 0.0;
        for tensor in &self.tensors {
            let values = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            total += values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
        }
        Ok(total.sqrt())
    }

    /// Scales all by `min(1, most / (norm + 1e-6))` as torch does; returns the norm before.
    /// A norm that is not finite is an error, before a step destroys the parameters.
    pub fn clip_global_norm(&mut self, most: f64) -> Result<f64> {
        let norm = self.global_norm()?;
        if !norm.is_finite() {
            return Err(Error::data(
                format!("a gradient norm of {norm}"),
                "finite gradients; lower the learning rate or look at the last batch",
            ));
        }
        let factor = most / (norm + 1e-6);
        if factor < 1.0 {
            self.scale(factor)?;
        }
        Ok(norm)
    }
}
