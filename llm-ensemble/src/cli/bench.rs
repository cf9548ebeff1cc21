//! `bench` in a run folder.

use common::Result;
use common::cli::{CommonArgs, Resolved};
use common::run::{RunFolder, RunSpec};

use crate::bench::{self, Context};
use crate::config::Config;

pub(super) fn bench(args: &CommonArgs, resolved: &Resolved<Config>) -> Result<String> {
    let spec = RunSpec::new("llm-ensemble", args, resolved, &args.seed_values(1));
    let folder = RunFolder::open(&spec)?;
    let context = Context {
        assets: super::assets_of(args),
        llm: super::llm_options(args),
        profile: args.profile,
        seed: args.seed,
    };
    let outcome = bench::run(&resolved.config, &context).and_then(|mut report| {
        folder.write_report(&mut report)?;
        if args.json { report.to_json() } else { Ok(report.to_markdown()) }
    });
    folder.close(&outcome)?;
    outcome
}
