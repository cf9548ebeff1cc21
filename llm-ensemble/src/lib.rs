//! x
pub mod baselines;
pub mod bench;
pub mod config;
pub mod data;
pub mod eval;
pub mod labelers;
pub mod model;
pub mod train;
pub mod votes;
