//! Integration tests: one binary for the crate.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod aggregate;
mod bench_data;
mod cli;
mod label;
mod properties;
mod sample;
