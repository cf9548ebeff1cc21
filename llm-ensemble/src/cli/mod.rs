//! The verbs of the `llm-ensemble` binary as library calls. Each returns the text for stdout.

mod aggregate;
mod ask;
mod bench;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use common::cli::{self, CommonArgs, Profile, Resolved};
use common::{Result, assets, llm};

use crate::config::{Config, LabelerConfig, PromptConfig, ScoreConfig};

/// Weights several LLMs' answers to extract product attributes (LLM-Ensemble, arXiv 2403.00863).
#[derive(Debug, Parser)]
#[command(name = "llm-ensemble", version)]
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
    /// Ask LLMs and other labelers about every product of a file and write their votes
    Label(ask::LabelArgs),
    /// Estimate the weight of every worker from votes alone and write model and labels
    Fit(aggregate::FitArgs),
    /// Label items from votes, with a fitted model or from scratch
    Predict(aggregate::PredictArgs),
    /// Join the part files of a sharded predict
    Merge(aggregate::MergeArgs),
    /// Compare aggregators and single workers with gold labels
    Eval(aggregate::EvalArgs),
    /// Reproduce the paper's comparison: ours, baselines, ablations, controls
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
    let resolved = resolve(args)?;
    match &cli.verb {
        Verb::Label(label) => ask::label(label, args, &resolved),
        Verb::Fit(fit) => aggregate::fit(fit, args, &resolved),
        Verb::Predict(predict) => aggregate::predict(predict, args, &resolved),
        Verb::Merge(merge) => aggregate::merge(merge, args),
        Verb::Eval(eval) => aggregate::eval(eval, args, &resolved),
        Verb::Bench => bench::bench(args, &resolved),
        Verb::Config { schema } => cli::config(args, &resolved, *schema),
    }
}

fn resolve(args: &CommonArgs) -> Result<Resolved<Config>> {
    let profile = match args.profile {
        Profile::Smoke => Config::smoke(),
        Profile::Cpu => Config::cpu(),
        Profile::Paper => Config::paper(),
    };
    let mut resolved = cli::resolve(profile, args)?;
    let config = &mut resolved.config;
    for (index, spec) in args.llm.iter().enumerate() {
        let name = format!("llm {}", index + 1);
        let llm = spec.clone();
        // Only local models tell the probability of given labels.
        let local = spec.starts_with("gguf:") || spec.starts_with("hf:");
        config.labelers.push(if local {
            LabelerConfig::Score(ScoreConfig { name, llm, ..ScoreConfig::default() })
        } else {
            LabelerConfig::Prompt(PromptConfig { name, llm, ..PromptConfig::default() })
        });
    }
    config.check()?;
    Ok(resolved)
}

fn assets_of(args: &CommonArgs) -> assets::Assets {
    let options = assets::AssetOptions::from_flags(args.assets.as_deref(), args.offline);
    assets::Assets::new(options)
}

fn llm_options(args: &CommonArgs) -> llm::LlmOptions {
    llm::LlmOptions::new(assets_of(args))
}

/// The schema file, if one was named.
fn schema(path: &Option<PathBuf>) -> Result<Option<crate::data::Schema>> {
    path.as_deref().map(crate::data::Schema::read).transpose()
}
