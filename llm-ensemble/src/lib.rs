//! x
pub mod baselines;
pub mod config;
pub mod data;
pub mod labelers;
pub mod model;
pub mod train;
pub mod votes;
