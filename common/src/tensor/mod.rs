//! What trains: runtime switches, seeded randomness, fused differentiable operators,
//! layers, language models, optimisers, checkpoints.

pub mod checkpoint;
pub mod lm;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod rng;
pub mod runtime;
