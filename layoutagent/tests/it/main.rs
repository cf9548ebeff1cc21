//! Integration tests of `layoutagent`.

#![allow(clippy::unwrap_used)]

mod cli;
mod goldens;
mod learned;
mod metrics;
mod relations;
mod solvers;
