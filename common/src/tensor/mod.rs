//! What trains: runtime switches and seeded randomness.

pub mod rng;
pub mod runtime;
