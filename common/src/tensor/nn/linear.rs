//! Linear layers and low-rank adapters.

use candle_core::Tensor;

use super::{Builder, Init};
use crate::ops::{self, Activation, WeightLayout};
use crate::{Error, Result};

/// `x · weightᵀ + bias`, optionally with a low-rank adapter. Parameters `weight` and `bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    layout: WeightLayout,
    adapter: Option<LowRank>,
}

/// The trainable part of a LoRA layer.
#[derive(Debug, Clone)]
struct LowRank {
    /// `[rank, inputs]`
    a: Tensor,
    /// `[outputs, rank]`
    b: Tensor,
    scale: f64,
}

/// Options of low-rank adapters ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)).
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraOptions {
    /// Rank of the update; default 8.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`; default 16.
    pub alpha: f64,
    /// Last part of the names of the layers that get one; default `q_proj` and `v_proj`.
    pub targets: Vec<String>,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, targets: vec!["q_proj".into(), "v_proj".into()] }
    }
}

impl Linear {
    /// `weight` `[outputs, inputs]`, initialised as torch's `nn.Linear`: weight and bias uniform in
    /// `±1/√inputs`.
    pub fn new(builder: &mut Builder, inputs: usize, outputs: usize, bias: bool) -> Result<Self> {
        Self::with_init(
            builder,
            inputs,
            outputs,
            bias.then(|| Init::fan_in(inputs)),
            Init::fan_in(inputs),
        )
    }

    /// Like [`Linear::new`] with other distributions; `bias` = `None` for no bias.
    pub fn with_init(
        builder: &mut Builder,
        inputs: usize,
        outputs: usize,
        bias: Option<Init>,
        weight: Init,
    ) -> Result<Self> {
        Ok(Self {
            weight: builder.tensor("weight", (outputs, inputs), weight)?,
            bias: bias.map(|init| builder.tensor("bias", outputs, init)).transpose()?,
            layout: WeightLayout::OutIn,
            adapter: None,
        })
    }

    /// GPT-2's `Conv1D`: `weight` `[inputs, outputs]` normal with deviation `sd`, bias 0.
    pub fn conv1d(builder: &mut Builder, inputs: usize, outputs: usize, sd: f64) -> Result<Self> {
        Ok(Self {
            weight: builder.tensor("weight", (inputs, outputs), Init::Normal(sd))?,
            bias: Some(builder.tensor("bias", outputs, Init::Constant(0.0))?),
            layout: WeightLayout::InOut,
            adapter: None,
        })
    }

    /// A layer over given tensors, for tied weights: `weight` `[outputs, inputs]`.
    pub fn tied(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, layout: WeightLayout::OutIn, adapter: None }
    }

    /// `[…, inputs]` → `[…, outputs]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_activation(x, None)
    }

    /// [`Linear::forward`], then the activation, as one operator where there is no adapter.
    pub fn forward_activation(&self, x: &Tensor, activation: Option<Activation>) -> Result<Tensor> {
        let plain = |activation| {
            ops::linear_layout(x, &self.weight, self.bias.as_ref(), activation, self.layout)
        };
        let Some(LowRank { a, b, scale }) = &self.adapter else { return Ok(plain(activation)?) };
        let update = ops::linear(&ops::linear(x, a, None)?, b, None)?;
        let out = (plain(None)? + (update * *scale)?)?;
        Ok(match activation {
            Some(activation) => activation.apply(&out)?,
            None => out,
        })
    }

    /// Inputs and outputs.
    pub fn sizes(&self) -> (usize, usize) {
        let dims = self.weight.dims();
        match self.layout {
            WeightLayout::OutIn => (dims[1], dims[0]),
            WeightLayout::InOut => (dims[0], dims[1]),
        }
    }

    /// The weight, in its layout.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Freezes weight and bias and adds `lora_A.weight` `[rank, inputs]` (as `nn.Linear`) and
    /// `lora_B.weight` `[outputs, rank]` (0), so the layer's function stays the same at first.
    pub fn attach_lora(&mut self, builder: &mut Builder, rank: usize, alpha: f64) -> Result<()> {
        if rank == 0 {
            return Err(Error::usage("LoRA of rank 0; use a rank of at least 1"));
        }
        let (inputs, outputs) = self.sizes();
        let a = builder.tensor("lora_A.weight", (rank, inputs), Init::fan_in(inputs))?;
        let b = builder.tensor("lora_B.weight", (outputs, rank), Init::Constant(0.0))?;
        self.weight = self.weight.detach();
        self.bias = self.bias.as_ref().map(Tensor::detach);
        self.adapter = Some(LowRank { a, b, scale: alpha / rank as f64 });
        Ok(())
    }

    /// The layer that computes only the outputs from `first` on.
    pub(super) fn narrow_outputs(&self, first: usize, count: usize) -> Result<Self> {
        let axis = usize::from(self.layout == WeightLayout::InOut);
        Ok(Self {
            weight: self.effective_weight()?.narrow(axis, first, count)?,
            bias: self.bias.as_ref().map(|bias| bias.narrow(0, first, count)).transpose()?,
            layout: self.layout,
            adapter: None,
        })
    }

    /// The share of the inputs from `first` on, without bias.
    pub(super) fn narrow_inputs(&self, first: usize, count: usize) -> Result<Self> {
        let axis = usize::from(self.layout == WeightLayout::OutIn);
        let weight = self.effective_weight()?.narrow(axis, first, count)?;
        Ok(Self { weight, bias: None, layout: self.layout, adapter: None })
    }

    /// Weight and adapter as one; gradients reach both.
    fn effective_weight(&self) -> Result<Tensor> {
        let Some(LowRank { a, b, scale }) = &self.adapter else { return Ok(self.weight.clone()) };
        let update = (b.matmul(a)? * *scale)?;
        let update = if self.layout == WeightLayout::InOut { update.t()? } else { update };
        Ok((&self.weight + update)?)
    }

    /// The weight with the adapter's update added, in the layer's layout; the weight itself where
    /// there is no adapter.
    pub fn merged_weight(&self) -> Result<Tensor> {
        Ok(self.effective_weight()?.detach())
    }

    /// Whether a low-rank adapter is attached.
    pub fn has_lora(&self) -> bool {
        self.adapter.is_some()
    }

    /// Puts a weight and bias of the same shapes in place of the present ones, without adapter.
    pub fn restore(&mut self, weight: Tensor, bias: Option<Tensor>) {
        (self.weight, self.bias, self.adapter) = (weight, bias, None);
    }
}

/// Rows of a table by id. Parameter `weight` `[vocabulary, width]`.
#[derive(Debug, Clone)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// Initialised as torch's `nn.Embedding` with `sd` 1; language models use 0.02.
    pub fn new(builder: &mut Builder, vocabulary: usize, width: usize, sd: f64) -> Result<Self> {
        Ok(Self { weight: builder.tensor("weight", (vocabulary, width), Init::Normal(sd))? })
    }

    /// Ids of any shape → `[…, width]`.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(ops::embedding(&self.weight, ids)?)
    }

    /// The table.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}
