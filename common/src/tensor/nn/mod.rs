//! Layers over [`crate::ops`], named and initialised as in PyTorch.
//!
//! A layer asks a [`Builder`] for its tensors, which are drawn from a seed or taken from a file; the
//! builder's [`Parameters`] are what an optimiser steps and a checkpoint holds.

mod attention;
mod conv;
mod linear;
mod mlp;
mod norm;
mod parameters;

pub use attention::{Attention, AttentionInputs, Heads, KvCache, Port, RelativeBias};
pub use conv::{Conv2d, ResidualBlock};
pub use linear::{Embedding, Linear, LoraOptions};
pub use mlp::{Mlp, SwiGluMlp};
pub use norm::{GroupNorm, LayerNorm, RmsNorm};
pub use parameters::{Builder, Init, Parameters};
