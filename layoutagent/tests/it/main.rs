//! Integration tests of `layoutagent`.

#![allow(clippy::unwrap_used)]

mod goldens;
mod relations;
mod solvers;
