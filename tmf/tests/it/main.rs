//! Integration tests: one binary for the crate.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod bundled;
mod cli;
mod data;
mod encoders;
mod fusion;
mod learning;
