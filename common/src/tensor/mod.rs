//! What trains: runtime switches, seeded randomness, fused differentiable operators,
//! layers, optimisers, checkpoints.

pub mod checkpoint;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod rng;
pub mod runtime;
