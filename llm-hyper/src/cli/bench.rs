//! `bench` in a run folder.

use std::path::PathBuf;

use common::Result;
use common::cli::{self, CommonArgs, Resolved};

use crate::bench::{self, Context};
use crate::config::Config;

pub(super) fn bench(
    record: Option<PathBuf>,
    args: &CommonArgs,
    resolved: &Resolved<Config>,
) -> Result<String> {
    cli::bench("llm-hyper", args, resolved, 1, |_, _| {
        let mut llm = super::llm_options(args);
        llm.record = record;
        let context =
            Context { assets: super::assets_of(args), llm, profile: args.profile, seed: args.seed };
        bench::run(&resolved.config, &context)
    })
}
