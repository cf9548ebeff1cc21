//! Layers over [`crate::ops`], named and initialised as in PyTorch.

mod parameters;

pub use parameters::{Builder, Init, Parameters};
