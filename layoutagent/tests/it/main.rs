//! Integration tests of `layoutagent`.

#![allow(clippy::unwrap_used)]

mod agent;
mod cli;
mod diffusion;
mod goldens;
mod learned;
mod metrics;
mod relations;
mod segment;
mod solvers;
