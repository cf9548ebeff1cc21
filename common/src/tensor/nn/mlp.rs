//! Feed-forward layers.

use candle_core::Tensor;

use super::{Builder, Init, Linear};
use crate::Result;
use crate::ops::{self, Activation};

/// Two linear maps with an activation between them.
#[derive(Debug, Clone)]
pub struct Mlp {
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Mlp {
    /// From two layers.
    pub fn new(up: Linear, down: Linear, activation: Activation) -> Self {
        Self { up, down, activation }
    }

    /// `[…, inputs]` → `[…, outputs]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&self.up.forward_activation(x, Some(self.activation))?)
    }

    /// First and second layer.
    pub fn linears_mut(&mut self) -> [&mut Linear; 2] {
        [&mut self.up, &mut self.down]
    }
}

/// `down(silu(gate(x)) · up(x))`; parameters `gate_proj`, `up_proj`, `down_proj`, without bias.
#[derive(Debug, Clone)]
pub struct SwiGluMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl SwiGluMlp {
    /// Llama's names.
    pub fn new(builder: &mut Builder, hidden: usize, inner: usize, weight: Init) -> Result<Self> {
        let mut linear = |name: &str, inputs: usize, outputs: usize| {
            builder.within(name, |b| Linear::with_init(b, inputs, outputs, None, weight))
        };
        let gate = linear("gate_proj", hidden, inner)?;
        let up = linear("up_proj", hidden, inner)?;
        Ok(Self { gate, up, down: linear("down_proj", inner, hidden)? })
    }

    /// `[…, hidden]`, same shape out.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = ops::swiglu(&self.gate.forward(x)?, &self.up.forward(x)?)?;
        self.down.forward(&inner)
    }

    /// The linear layers by the last part of their names.
    pub fn linears_mut(&mut self) -> [(&'static str, &mut Linear); 3] {
        [("gate_proj", &mut self.gate), ("up_proj", &mut self.up), ("down_proj", &mut self.down)]
    }
}
