//! Trains what comes with the crate, the benchmark's main models on ML-100k, and writes `tmf/weights`
//! for the next build; whatever the cache holds already is taken from there.
//!
//! ```sh
//! cargo run --release -p tmf --example bundle -- 2     # threads
//! ```

use std::path::Path;

use common::assets::Assets;
use common::cli::Profile;
use common::{Error, Result};
use tmf::bench::{Context, bundled};
use tmf::bundle;
use tmf::config::Config;

fn main() -> Result<()> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |text| text.parse());
    let threads = threads.map_err(|_| Error::usage("the argument is a number of threads"))?;
    common::runtime::init(Some(threads));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let assets = Assets::from_env();
    let cache = assets.options().cache.join("tmf");
    let context = Context::new(assets, Profile::Cpu, &[0, 1, 2], &cache, folder, threads)?;
    bundle::write(&folder.join("weights"), bundled::pieces(&Config::cpu(), &context)?)
}
