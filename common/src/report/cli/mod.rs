//! Command-line flags and config layers shared by all binaries.
//!
//! Every binary flattens [`CommonArgs`] into its clap parser, calls [`init`] once, [`resolve`]s
//! its config and ends with [`exit`]. stdout carries the result only; logs, progress and errors
//! go to stderr.

mod config;
pub mod text;
mod verbs;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::runtime::Runtime;
use crate::{Error, Result, runtime};

pub use config::{Origin, Resolved, resolve};
pub use verbs::{bench, config};

/// Flags that mean the same in every binary and under every verb.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Options of all commands")]
pub struct CommonArgs {
    /// TOML file with config keys; may be repeated, later files win
    #[arg(short, long, value_name = "FILE", global = true)]
    pub config: Vec<PathBuf>,
    /// Size of the run: seconds (smoke), minutes on two cores (cpu), the paper's setting (paper)
    #[arg(long, value_enum, default_value_t, global = true)]
    pub profile: Profile,
    /// One config key, for example --set model.rank=8; may be repeated, wins over files
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    pub set: Vec<String>,
    /// Seed of all randomness
    #[arg(long, value_name = "N", default_value_t = 0, global = true)]
    pub seed: u64,
    /// Number of seeds, counted up from --seed; default by profile
    #[arg(long, value_name = "N", global = true)]
    pub seeds: Option<usize>,
    /// Compute threads; default all cores
    #[arg(long, value_name = "N", global = true)]
    pub threads: Option<usize>,
    /// cpu, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value_t, global = true)]
    pub device: Device,
    /// Folder of run folders
    #[arg(long, value_name = "DIR", default_value = "runs", global = true)]
    pub out: PathBuf,
    /// Continue the last unfinished run with the same config
    #[arg(long, global = true)]
    pub resume: bool,
    /// Open no socket: use only what is on this machine
    #[arg(long, global = true)]
    pub offline: bool,
    /// Folder with a copy of the assets; default SEPTET_ASSETS
    #[arg(long, value_name = "DIR", global = true)]
    pub assets: Option<PathBuf>,
    /// `gguf:PATH-or-asset-id`, `hf:REPO[@rev]`, `openai:BASE_URL#MODEL` or `replay:FILE`; may be repeated
    #[arg(long, value_name = "SPEC", global = true)]
    pub llm: Vec<String>,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Errors only
    #[arg(short, long, conflicts_with = "verbose", global = true)]
    pub quiet: bool,
    /// More log lines; twice for all
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
}

impl CommonArgs {
    /// The seeds of a run: `--seeds` many (or `default`) from `--seed` upwards.
    pub fn seed_values(&self, default: usize) -> Vec<u64> {
        let count = self.seeds.unwrap_or(default).max(1) as u64;
        (0..count).map(|step| self.seed.wrapping_add(step)).collect()
    }
}

/// Size of a run.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, clap::ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// At most 20 seconds a paper, for continuous integration.
    Smoke,
    /// A few minutes a paper on two cores.
    #[default]
    Cpu,
    /// The paper's configuration.
    Paper,
}

impl Profile {
    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Cpu => "cpu",
            Self::Paper => "paper",
        }
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Where tensors live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// Main memory.
    #[default]
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cuda = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        match (text, cuda) {
            ("cpu", _) => Ok(Self::Cpu),
            ("metal", _) => Ok(Self::Metal),
            (_, Some(number)) => Ok(Self::Cuda(number)),
            _ => Err("expected cpu, cuda:N or metal".to_owned()),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

/// Sets threads and runtime switches, starts logging to stderr and catches SIGINT and SIGTERM
/// (see [`super::run::interrupted`]). Call it once, before anything else.
///
/// Fails with [`Error::Usage`] on a device that this build can't use.
pub fn init(args: &CommonArgs) -> Result<&'static Runtime> {
    super::run::log::start(args.quiet, args.verbose);
    super::run::signal::catch();
    if args.device != Device::Cpu {
        return Err(Error::usage(format!(
            "--device {}: this build computes on the CPU only, leave the flag out",
            args.device
        )));
    }
    if args.threads == Some(0) {
        return Err(Error::usage("--threads 0: expected at least 1"));
    }
    let runtime = runtime::init(args.threads);
    tracing::debug!("{runtime}");
    Ok(runtime)
}

/// The process exit code of a finished command: 0, or [`Error::exit_code`]. The caller prints the
/// error, since only `main.rs` prints.
pub fn exit<T>(result: &Result<T>) -> ExitCode {
    match result {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(error.exit_code()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Binary {
        #[command(flatten)]
        common: CommonArgs,
    }

    #[test]
    fn flags_parse_with_their_defaults() {
        let args = Binary::parse_from(["x"]).common;
        assert_eq!((args.profile, args.device, args.seed), (Profile::Cpu, Device::Cpu, 0));
        assert_eq!(args.out, PathBuf::from("runs"));
        assert_eq!(args.seed_values(3), [0, 1, 2]);
        let args = Binary::parse_from(["x", "-c", "a", "-c", "b", "--seed", "7", "--seeds", "2"]);
        assert_eq!(args.common.config.len(), 2);
        assert_eq!(args.common.seed_values(5), [7, 8]);
    }

    #[test]
    fn devices_read_what_they_show() {
        for text in ["cpu", "cuda:1", "metal"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert!("cuda".parse::<Device>().is_err());
        assert!(Binary::try_parse_from(["x", "--device", "gpu"]).is_err());
    }
}
