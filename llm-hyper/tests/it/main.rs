//! Integration tests: one binary for the crate.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod bench_data;
mod calibration;
mod cli;
mod equations;
mod pipeline;
mod writing;
