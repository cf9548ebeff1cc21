//! The verbs of the `tmf` binary as library calls. Each returns the text for stdout.

mod tables;

use clap::{Parser, Subcommand};
use common::cli::{self, CommonArgs, Resolved};
use common::{Result, assets};

use crate::bench::{self, Context};
use crate::config::Config;

/// Fuses image, text and graph into an LLM that recommends (TMF, arXiv 2410.12228).
#[derive(Debug, Parser)]
#[command(name = "tmf", version)]
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
    /// Reproduce the paper's comparison: ours, baselines, ablations, controls
    Bench,
    /// Train on a table of events and a table of items and write the model
    Fit(tables::FitArgs),
    /// Recommend items to the users of a table of events
    Predict(tables::PredictArgs),
    /// Hold out each user's last event and measure
    Eval(tables::EvalArgs),
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
    cli::init(args)?;
    let resolved = cli::resolve(Config::of(args.profile), args)?;
    resolved.config.check()?;
    match &cli.verb {
        Verb::Bench => bench(args, &resolved),
        Verb::Fit(fit) => tables::fit(fit, args, &resolved.config),
        Verb::Predict(predict) => tables::predict(predict, args),
        Verb::Eval(eval) => tables::eval(eval, args),
        Verb::Config { schema } => cli::config(args, &resolved, *schema),
    }
}

fn assets_of(args: &CommonArgs) -> assets::Assets {
    assets::Assets::new(assets::AssetOptions::from_flags(args.assets.as_deref(), args.offline))
}

fn threads(args: &CommonArgs) -> usize {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    args.threads.unwrap_or(all).max(1)
}

fn bench(args: &CommonArgs, resolved: &Resolved<Config>) -> Result<String> {
    let seeds = if args.profile == common::cli::Profile::Smoke { 1 } else { 3 };
    cli::bench("tmf", args, resolved, seeds, |folder, seeds| {
        let assets = assets_of(args);
        let cache = assets.options().cache.join("tmf");
        let context =
            Context::new(assets, args.profile, seeds, &cache, folder.path(), threads(args))?;
        bench::run(&resolved.config, &context)
    })
}
