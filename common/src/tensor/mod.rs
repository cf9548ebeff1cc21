//! What trains: runtime switches, seeded randomness, fused differentiable operators,
//! layers, language and diffusion models, optimisers, checkpoints, recommenders to compare with.

pub mod checkpoint;
pub mod diffusion;
pub mod lm;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod recommend;
pub mod rng;
pub mod runtime;
