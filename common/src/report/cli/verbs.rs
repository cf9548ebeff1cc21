//! The verbs that are the same in every binary: `bench` and `config`.

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{CommonArgs, Resolved, text};
use crate::Result;
use crate::report::Report;
use crate::run::{RunFolder, RunSpec};

/// `bench`: measures in a run folder, writes the report there and returns it as Markdown, with
/// `--json` as JSON. `measure` gets the folder and the seeds (`--seeds`, by default
/// `default_seeds` many).
///
/// # Errors
/// Those of `measure` and of the run folder.
pub fn bench<C: Serialize>(
    paper: &str,
    args: &CommonArgs,
    resolved: &Resolved<C>,
    default_seeds: usize,
    measure: impl FnOnce(&RunFolder, &[u64]) -> Result<Report>,
) -> Result<String> {
    let seeds = args.seed_values(default_seeds);
    let folder = RunFolder::open(&RunSpec::new(paper, args, resolved, &seeds))?;
    let start = std::time::Instant::now();
    let outcome = measure(&folder, &seeds).and_then(|mut report| {
        report.seconds = Some(start.elapsed().as_secs_f64().round());
        report.config = resolved.to_toml();
        folder.write_report(&mut report)?;
        if args.json { report.to_json() } else { Ok(report.to_markdown()) }
    });
    folder.close(&outcome)?;
    outcome
}

/// `config`: every value with its origin as TOML, with `--json` as JSON; or the JSON Schema.
///
/// # Errors
/// None but bugs.
pub fn config<C: Serialize + DeserializeOwned + JsonSchema>(
    args: &CommonArgs,
    resolved: &Resolved<C>,
    schema: bool,
) -> Result<String> {
    if schema {
        text::json(resolved.json_schema())
    } else if args.json {
        text::json(&resolved.to_json())
    } else {
        Ok(resolved.to_toml())
    }
}
