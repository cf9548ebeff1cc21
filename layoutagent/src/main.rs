//! Command line of `layoutagent`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use layoutagent::cli::{Cli, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = run(&cli);
    match &outcome {
        // A closed pipe (`| head`) is not an error of ours.
        Ok(text) => drop(std::io::stdout().write_all(text.as_bytes())),
        Err(error) => eprintln!("error: {error}"),
    }
    common::cli::exit(&outcome)
}
