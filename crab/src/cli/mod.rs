//! The verbs of the `crab` binary as library calls. Each returns the text for stdout.

mod recommend;
mod tables;

use clap::{Parser, Subcommand};
use common::Result;
use common::assets::{AssetOptions, Assets};
use common::cli::{self, CommonArgs, Profile, Resolved};

use crate::bench::{self, Context};
use crate::config::Config;

/// Rebalances the code book of a generative recommender (CRAB, arXiv 2604.05113).
#[derive(Debug, Parser)]
#[command(name = "crab", version)]
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
    /// Make semantic IDs for the items of your data and train a generator on your interactions
    Fit(recommend::FitArgs),
    /// Split over-popular tokens of a semantic-ID table, or of a fitted recommender with fine-tuning
    Rebalance(tables::RebalanceArgs),
    /// Report load, use and collisions of a semantic-ID table
    Audit(tables::AuditArgs),
    /// Recommend the next items of users
    Predict(recommend::PredictArgs),
    /// Measure a fitted recommender on the held-out items of your data, beside Pop and Markov
    Eval(recommend::EvalArgs),
    /// Reproduce the paper's comparison: CRAB, baselines, ablations, controls
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
    let profile = match args.profile {
        Profile::Smoke => Config::smoke(),
        Profile::Cpu => Config::cpu(),
        Profile::Paper => Config::paper(),
    };
    let resolved: Resolved<Config> = cli::resolve(profile, args)?;
    let config = &resolved.config;
    config.check()?;
    let assets = Assets::new(AssetOptions::from_flags(args.assets.as_deref(), args.offline));
    match &cli.verb {
        Verb::Fit(fit) => recommend::fit(fit, args, config, &assets, runtime.threads),
        Verb::Rebalance(verb) => tables::rebalance(verb, args, config, runtime.threads),
        Verb::Audit(audit) => tables::audit(audit, args),
        Verb::Predict(predict) => recommend::predict(predict, args, config, runtime.threads),
        Verb::Eval(eval) => recommend::eval(eval, args, config, runtime.threads),
        Verb::Bench => cli::bench("crab", args, &resolved, config.bench.seeds, |_, seeds| {
            let context =
                Context { assets: assets.clone(), profile: args.profile, threads: runtime.threads };
            bench::run(config, &context, seeds)
        }),
        Verb::Config { schema } => cli::config(args, &resolved, *schema),
    }
}
