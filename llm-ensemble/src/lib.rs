//! x
pub mod baselines;
pub mod model;
pub mod train;
pub mod votes;
