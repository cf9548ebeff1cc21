//! `bench` in a run folder.

use common::Result;
use common::cli::{self, CommonArgs, Resolved};

use crate::bench::{self, Context};
use crate::config::Config;

pub(super) fn bench(args: &CommonArgs, resolved: &Resolved<Config>) -> Result<String> {
    cli::bench("llm-hyper", args, resolved, 1, |_, _| {
        let context = Context {
            assets: super::assets_of(args),
            llm: super::llm_options(args),
            profile: args.profile,
            seed: args.seed,
        };
        bench::run(&resolved.config, &context)
    })
}
