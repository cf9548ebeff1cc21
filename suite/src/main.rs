//! `cargo suite`: every paper's benchmark in one table. See `cargo suite --help`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use common::Result;
use common::cli::{self, CommonArgs};
use suite::{assets, compare, results, run};

/// Run the benchmarks of all papers, fetch their assets, write one report
#[derive(Parser)]
#[command(name = "cargo suite", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    options: run::Options,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the benchmarks (the default)
    Run,
    /// List, fetch or verify the pinned assets
    Assets {
        #[arg(value_enum, default_value_t)]
        action: assets::Action,
        /// Asset ids; default all of the default set (fetch), all (list), all present (verify)
        ids: Vec<String>,
    },
    /// Write report.html of the last run again and print its table
    Report,
    /// Compare the numbers of two runs by --tolerance, with 0 to the byte; exit code 7 on a difference
    Compare {
        /// Folder given as --out to one run
        a: PathBuf,
        /// Folder given as --out to the other
        b: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = execute(&arguments);
    match result {
        Ok(failed) => failed.map_or(ExitCode::SUCCESS, ExitCode::from),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Runs the verb; the exit code of the first paper that failed comes back.
fn execute(arguments: &Arguments) -> Result<Option<u8>> {
    cli::init(&arguments.common)?;
    let args = &arguments.common;
    match &arguments.verb {
        None | Some(Verb::Run) => {
            let outcome = run::run(args, &arguments.options)?;
            print_results(&outcome.results, args.json)?;
            eprintln!("report: {}", outcome.page.display());
            if arguments.options.check {
                results::check(&outcome.results, &outcome.committed, arguments.options.tolerance)?;
            }
            Ok(outcome.failed)
        }
        Some(Verb::Assets { action, ids }) => {
            print!("{}", assets::execute(*action, ids, args)?);
            Ok(None)
        }
        Some(Verb::Compare { a, b }) => {
            print!("{}", compare::compare(a, b, arguments.options.tolerance)?);
            Ok(None)
        }
        Some(Verb::Report) => {
            let (results, page): (results::Results, PathBuf) = run::report(args)?;
            print_results(&results, args.json)?;
            eprintln!("report: {}", page.display());
            Ok(None)
        }
    }
}

fn print_results(results: &results::Results, json: bool) -> Result<()> {
    if json {
        print!("{}", results.to_json()?);
    } else {
        print!("{}", results.to_markdown());
    }
    Ok(())
}
