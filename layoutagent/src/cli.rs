//! The verbs of the `layoutagent` binary as library calls. Each returns the text for stdout.

mod plan;
mod render;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use common::cli::{self, CommonArgs, Profile, Resolved, text};
use common::report::Figure;
use common::report::plot::{Labels, Line, lines};
use common::rng::Seed;
use common::run::{RunFolder, RunSpec};
use common::{Result, assets, emoji, runtime};

use crate::bench::{self, Context};
use crate::config::Config;
use crate::{networks, segment, train};

/// Plans object layouts by compositional diffusion and renders the scene (LayoutAgent, arXiv
/// 2509.22720).
#[derive(Debug, Parser)]
#[command(name = "layoutagent", version)]
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
    /// Turn a text or a scene file into verified, ranked layouts
    Plan(plan::PlanArgs),
    /// Draw a layout: PNG, overlay and one PNG per object
    Render(render::RenderArgs),
    /// Cut an object out of a picture by a box or a point
    Cut(render::CutArgs),
    /// Train the relation networks (or the segmenter) and write their weights
    Fit {
        /// Weights to write
        #[arg(long, default_value = "relations.safetensors")]
        to: PathBuf,
        /// Train the segmentation network instead
        #[arg(long)]
        segmenter: bool,
    },
    /// Measure the layouts of a plan: relations, overlap, alignment, out-of-frame share
    Eval {
        /// layouts.json of `plan`
        layouts: PathBuf,
    },
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
    let runtime = cli::init(args)?;
    let resolved = resolve(args)?;
    match &cli.verb {
        Verb::Plan(plan) => plan::plan(plan, args, &resolved.config),
        Verb::Render(render) => render::render(render, args),
        Verb::Cut(cut) => render::cut(cut),
        Verb::Fit { to, segmenter } => fit(to, *segmenter, args, &resolved),
        Verb::Eval { layouts } => plan::eval(layouts, args),
        Verb::Bench => {
            let context = Context {
                assets: assets_of(args),
                profile: args.profile,
                threads: runtime.threads,
            };
            cli::bench("layoutagent", args, &resolved, 1, |_, seeds| {
                bench::run(&resolved.config, &context, seeds[0])
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
    let options = assets::AssetOptions::from_flags(args.assets.as_deref(), args.offline);
    assets::Assets::new(options)
}

/// `fit`: trains in a run folder with the loss curve beside it.
fn fit(
    to: &Path,
    segmenter: bool,
    args: &CommonArgs,
    resolved: &Resolved<Config>,
) -> Result<String> {
    let folder = RunFolder::open(&RunSpec::new("layoutagent", args, resolved, &[args.seed]))?;
    let threads = runtime::init(None).threads;
    let config = &resolved.config;
    let mut history = Vec::new();
    let outcome = (|| {
        let log = |update: usize, loss: f64| {
            tracing::info!("update {update}: loss {loss:.4}");
            history.push((update, loss));
        };
        let seed = Seed::new(args.seed);
        let parameters = if segmenter {
            let pictures = emoji::load(&assets_of(args))?;
            segment::fit::train(&config.segment, &pictures, seed, threads, log)?
        } else {
            train::train(&config.train, seed, threads, log)?
        };
        for (update, loss) in &history {
            folder.log_metrics(&serde_json::json!({"update": update, "loss": loss}))?;
        }
        let curve = Line {
            name: "loss".into(),
            points: history.iter().map(|&(u, l)| (u as f64, l)).collect(),
        };
        let labels = Labels { title: "Training", x: "update", y: "loss" };
        let figure = Figure::new("Training", "The loss over the updates.", lines(labels, &[curve]));
        folder.write("plots/training.svg", figure.described_svg().as_bytes())?;
        networks::save(&parameters.tensors(), to)?;
        let (updates, last) = history.last().copied().unwrap_or_default();
        let parameters = parameters.elements();
        if args.json {
            return text::json(&serde_json::json!({
                "weights": to, "parameters": parameters, "updates": updates, "loss": last,
            }));
        }
        Ok(format!("{}: {parameters} parameters, loss {last:.4}\n", to.display()))
    })();
    folder.close(&outcome)?;
    outcome
}
