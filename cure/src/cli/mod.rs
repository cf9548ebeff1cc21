//! The verbs of the `cure` binary as library calls. Each returns the text for stdout.

mod explain;
mod fit;
mod unlearn;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use common::cli::{self, CommonArgs, Profile, Resolved};
use common::lm::Lm;
use common::run::hash8;
use common::{Error, Result, assets};

use crate::bench::{self, Context};
use crate::config::Config;
use crate::data::{Interactions, Request, read_interactions};

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
    /// Train the recommender from scratch and write it to a folder
    Fit(fit::FitArgs),
    /// Find the circuits of what a request would forget and of what stays
    Circuit(explain::CircuitArgs),
    /// Forget: write a new model and a report; the original stays as it is
    Unlearn(unlearn::UnlearnArgs),
    /// Quality of a model on its test records; with --against, its distance to another model
    Eval(fit::EvalArgs),
    /// Which modules serve one user, their groups and the conflict of forgetting with keeping
    Explain(explain::ExplainArgs),
    /// Compare CURE with baselines, ablations and controls
    Bench,
    /// Show the resolved config and where each value came from
    Config {
        /// Print the JSON Schema of the config instead
        #[arg(long)]
        schema: bool,
    },
}

/// Where judgements come from.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// Table with user, item, title, time and liked or rating; MovieLens-100k without it
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
}

impl DataArgs {
    fn read(&self, args: &CommonArgs, config: &Config) -> Result<Interactions> {
        match &self.data {
            Some(path) => read_interactions(path, config.data.threshold),
            None => bench::movielens(&assets_of(args)),
        }
    }
}

/// What to forget; exactly one.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct RequestArgs {
    /// All training events of this user; may be repeated
    #[arg(long = "user", value_name = "ID")]
    pub users: Vec<String>,
    /// All training events of a random share of the users
    #[arg(long, value_name = "SHARE")]
    pub user_share: Option<f64>,
    /// A random share of the training events
    #[arg(long, value_name = "SHARE")]
    pub interaction_share: Option<f64>,
    /// All training events with this item
    #[arg(long, value_name = "ID")]
    pub item: Option<String>,
    /// All training events with items of this topic
    #[arg(long, value_name = "TOPIC")]
    pub topic: Option<String>,
    /// One user's judgement of one item
    #[arg(long, value_name = "USER:ITEM")]
    pub pair: Option<String>,
}

impl RequestArgs {
    fn request(&self) -> Result<Request> {
        if let Some(share) = self.user_share {
            return Ok(Request::UserShare { share });
        }
        if let Some(share) = self.interaction_share {
            return Ok(Request::Interactions { share });
        }
        if let Some(item) = &self.item {
            return Ok(Request::Item { item: item.clone() });
        }
        if let Some(topic) = &self.topic {
            return Ok(Request::Topic { topic: topic.clone() });
        }
        if let Some(pair) = &self.pair {
            let (user, item) = pair.split_once(':').ok_or_else(|| {
                Error::usage(format!("--pair {pair}: expected a user id, a colon and an item id"))
            })?;
            return Ok(Request::Pair { user: user.to_owned(), item: item.to_owned() });
        }
        Ok(Request::Users { users: self.users.clone() })
    }
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
        Verb::Fit(fit) => fit::fit(fit, args, &resolved),
        Verb::Circuit(circuit) => explain::circuit(circuit, args, &resolved),
        Verb::Unlearn(unlearn) => unlearn::unlearn(unlearn, args, &resolved),
        Verb::Eval(eval) => fit::eval(eval, args, &resolved),
        Verb::Explain(explain) => explain::explain(explain, args, &resolved),
        Verb::Bench => {
            let context = Context {
                assets: assets_of(args),
                profile: args.profile,
                threads: runtime.threads,
            };
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

fn workers(_: &CommonArgs) -> Result<common::optim::Workers> {
    common::optim::Workers::new(common::runtime::init(None).threads)
}

/// A hash of all weights.
fn weights_hash(lm: &Lm) -> Result<String> {
    let mut bytes = Vec::new();
    for (_, var) in lm.parameters().iter() {
        let values = var.flatten_all()?.to_vec1::<f32>()?;
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    Ok(hash8(&bytes))
}
