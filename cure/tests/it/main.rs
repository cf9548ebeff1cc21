//! Integration tests of the crate, one binary.

#![allow(clippy::unwrap_used)]

mod attribution;
mod cli;
mod data;
mod metrics;
mod training;
mod update;
