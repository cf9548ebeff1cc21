//! The verbs of the `poac` binary as library calls. Each returns the text for stdout.

mod fit;
mod generate;
mod rewrite;
mod stable;

use clap::{Parser, Subcommand};
use common::Result;
use common::assets::{AssetOptions, Assets};
use common::cli::{self, CommonArgs, Profile, Resolved};
use common::rng::Seed;

use crate::bench::{self, Context};
use crate::config::Config;
use crate::studio::Base;

/// Prompts for abstract concepts, and a denoiser tuned by rewards (arXiv 2404.11589).
#[derive(Debug, Parser)]
#[command(name = "poac", version)]
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
    /// Replace the abstract concept of a prompt by concrete objects, and say why these
    Rewrite(rewrite::RewriteArgs),
    /// Draw a prompt: PNG files with prompt and seed inside
    Generate(generate::GenerateArgs),
    /// Train the language model, scorers and denoiser, then tune the denoiser by rewards; or tune a
    /// Stable Diffusion model
    Fit(stable::FitArgs),
    /// Score prompts of a file against the objects that people file under each concept
    Eval(rewrite::EvalArgs),
    /// Reproduce the comparison: ours, baselines, ablations, controls
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
    cli::init(args)?;
    let profile = match args.profile {
        Profile::Smoke => Config::smoke(),
        Profile::Cpu => Config::cpu(),
        Profile::Paper => Config::paper(),
    };
    let mut resolved: Resolved<Config> = cli::resolve(profile, args)?;
    if let Some(spec) = args.llm.first() {
        resolved.config.bench.llm = spec.clone();
    }
    resolved.config.check()?;
    match &cli.verb {
        Verb::Rewrite(verb) => rewrite::rewrite(verb, args, &resolved.config),
        Verb::Generate(verb) => generate::generate(verb, args, &resolved.config),
        Verb::Fit(verb) => match &verb.diffusion {
            Some(spec) => stable::fit(spec, verb, args, &resolved.config),
            None => fit::fit(verb, args, &resolved.config),
        },
        Verb::Eval(verb) => rewrite::eval(verb, args, &resolved.config),
        Verb::Bench => {
            let context = Context { assets: assets_of(args), profile: args.profile };
            cli::bench("poac", args, &resolved, seeds(args), |_, seeds| {
                bench::run(&resolved.config, &context, seeds)
            })
        }
        Verb::Config { schema } => cli::config(args, &resolved, *schema),
    }
}

/// Seeds of `bench` and `fit`, if the flags name no number.
fn seeds(args: &CommonArgs) -> usize {
    if args.profile == Profile::Smoke { 1 } else { 3 }
}

fn assets_of(args: &CommonArgs) -> Assets {
    Assets::new(AssetOptions::from_flags(args.assets.as_deref(), args.offline))
}

fn base_of(args: &CommonArgs, config: &Config) -> Result<Base> {
    Base::new(config, &assets_of(args), Seed::new(args.seed))
}
