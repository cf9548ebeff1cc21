//! The verbs of the `llm-hyper` binary as library calls. Each returns the text for stdout.

mod ads;
mod bench;
mod look;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use common::cli::{self, CommonArgs, Profile, Resolved};
use common::{Result, assets, llm};

use crate::config::Config;
use crate::data::Schema;
use crate::writer::Writer;

/// An LLM writes the click model of an ad without history (LLM-HYPER, arXiv 2604.12096).
#[derive(Debug, Parser)]
#[command(name = "llm-hyper", version)]
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
    /// Train the click models of retired ads: the warm library
    Fit(ads::FitArgs),
    /// Learn on retired ads how to blend the LLM's answers with the library's own weights
    Calibrate(ads::CalibrateArgs),
    /// Let the LLM write the click models of new ads
    Generate(ads::GenerateArgs),
    /// Score users on ads
    Predict(ads::PredictArgs),
    /// Show why an ad has its weights: the LLM's answer, demonstrations, reasons, calibration
    Explain(look::ExplainArgs),
    /// Judge artefacts by impressions, beside LR_cold and kNN weights
    Eval(look::EvalArgs),
    /// Correct written models by the ads' first impressions
    Warm(ads::WarmArgs),
    /// Reproduce the paper's comparison: ours, baselines, ablations, controls
    Bench {
        /// Keep every LLM answer in this file, which `--llm replay:FILE` reads
        #[arg(long, value_name = "FILE")]
        record: Option<PathBuf>,
    },
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
        Verb::Fit(fit) => ads::fit(fit, args, &resolved),
        Verb::Calibrate(calibrate) => ads::calibrate(calibrate, args, &resolved),
        Verb::Generate(generate) => ads::generate(generate, args, &resolved),
        Verb::Predict(predict) => ads::predict(predict, args, &resolved),
        Verb::Explain(explain) => look::explain(explain, args),
        Verb::Eval(eval) => look::eval(eval, args, &resolved),
        Verb::Warm(warm) => ads::warm(warm, args, &resolved),
        Verb::Bench { record } => bench::bench(record.clone(), args, &resolved),
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
    if let Some(spec) = args.llm.first() {
        resolved.config.bench.llm = spec.clone();
    }
    resolved.config.check()?;
    Ok(resolved)
}

fn assets_of(args: &CommonArgs) -> assets::Assets {
    let options = assets::AssetOptions::from_flags(args.assets.as_deref(), args.offline);
    assets::Assets::new(options)
}

fn llm_options(args: &CommonArgs) -> llm::LlmOptions {
    llm::LlmOptions::new(assets_of(args))
}

/// The writer on `--llm`, or on the bench's LLM without it.
fn open_writer(
    args: &CommonArgs,
    resolved: &Resolved<Config>,
    schema: &Schema,
    record: Option<PathBuf>,
) -> Result<Writer> {
    let spec = resolved.config.bench.llm.parse()?;
    let options = llm::LlmOptions { record, ..llm_options(args) };
    Writer::open(&spec, &options, schema, &resolved.config.writer)
}
