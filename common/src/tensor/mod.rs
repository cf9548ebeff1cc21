//! What trains: runtime switches, seeded randomness, fused differentiable operators.

pub mod ops;
pub mod rng;
pub mod runtime;
