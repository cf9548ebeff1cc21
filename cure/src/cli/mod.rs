//! The verbs of the `cure` binary as library calls. Each returns the text for stdout.

use clap::{Parser, Subcommand};
use common::cli::{self, CommonArgs, Profile, Resolved};
use common::{Result, assets};

use crate::bench::{self, Context};
use crate::config::Config;

/// Unlearns users' data from an LLM recommender through its circuits (CURE, arXiv 2604.04982).
#[derive(Debug, Parser)]
#[command(name = "cure", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Flags of all verbs.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Compare CURE with baselines, ablations and controls
    Bench,
    /// Show the resolved config and where each value came from
    Config {
        /// Print the JSON Schema of the config instead
        #[arg(long)]
        schema: bool,
    },
}

/// Runs one verb and returns what belongs on stdout.
///
/// # Errors
/// Those of the verb; [`common::Error::exit_code`] gives the exit code.
pub fn run(cli: &Cli) -> Result<String> {
    let args = &cli.common;
    let runtime = cli::init(args)?;
    let resolved = resolve(args)?;
    match &cli.verb {
        Verb::Bench => {
            let context =
                Context { assets: assets_of(args), profile: args.profile, threads: runtime.threads };
            let seeds = match args.profile {
                Profile::Smoke => 2,
                Profile::Cpu => 3,
                Profile::Paper => 5,
            };
            cli::bench("cure", args, &resolved, seeds, |folder, seeds| {
                bench::run(&resolved.config, &context, Some(folder), seeds)
            })
        }
        Verb::Config { schema } => cli::config(args, &resolved, *schema),
    }
}

fn resolve(args: &CommonArgs) -> Result<Resolved<Config>> {
    let profile = match args.profile {
        Profile::Smoke => Config::smoke(),
        Profile::Cpu => Config::cpu(),
        Profile::Paper => Config::paper(),
    };
    let resolved = cli::resolve(profile, args)?;
    resolved.config.check()?;
    Ok(resolved)
}

fn assets_of(args: &CommonArgs) -> assets::Assets {
    assets::Assets::new(assets::AssetOptions::from_flags(args.assets.as_deref(), args.offline))
}
