//! `bench`: the recommender against simple ones; every unlearning method against models retrained
//! without the forget set, with the spread between retrained models as the noise floor.

pub mod figures;
mod headline;
mod models;
mod recommenders;
mod requests;
mod table;

use common::assets::Assets;
use common::cli::Profile;
use common::data::movielens::MovieLens;
use common::optim::Workers;
use common::report::{Report, Row};
use common::rng::Seed;
use common::run::RunFolder;
use common::{Error, Result};

use crate::config::Config;
use crate::data::{Interactions, Synthetic, from_movielens, synthetic};
use crate::stages::{Case, Setting};

/// Where a bench finds data and keeps trained models.
#[derive(Clone)]
pub struct Context {
    /// Data sets; trained models are kept in the cache folder.
    pub assets: Assets,
    /// Size of the run.
    pub profile: Profile,
    /// Threads.
    pub threads: usize,
}

/// MovieLens-100k, or why it is not here.
///
/// # Errors
/// Damaged files; [`Error::Asset`] when absent.
pub fn movielens(assets: &Assets) -> Result<Interactions> {
    let mut folder = None;
    for end in ["inter", "item", "user", "kg", "link"] {
        let path = assets.file("ml-100k", &format!("ml-100k.{end}"))?;
        folder = path.parent().map(std::path::Path::to_owned);
    }
    let folder = folder.ok_or_else(|| Error::Bug("an asset without a folder".to_owned()))?;
    Ok(from_movielens(&MovieLens::read(&folder)?))
}

/// Runs the comparison over the seeds (at least two: the noise floor is the distance between two
/// retrained models).
///
/// # Errors
/// [`Error::Usage`] with one seed; anything but an absent data set, which is replaced by synthetic
/// data that the rows name.
pub fn run(
    config: &Config,
    context: &Context,
    folder: Option<&RunFolder>,
    seeds: &[u64],
) -> Result<Report> {
    if seeds.len() < 2 {
        return Err(Error::usage("bench with one seed has no noise floor; use --seeds 2 or more"));
    }
    let mut report = Report::new("cure", context.profile.name());
    let (data, name) = match movielens(&context.assets) {
        Ok(data) => (data, "ml-100k"),
        Err(error @ Error::Asset { .. }) => {
            let row = Row { dataset: "ml-100k".into(), metric: "AUC".into(), ..Row::default() };
            report
                .rows
                .push(row.not_run(&format!("{error}; the rows below are of synthetic data")));
            let sizes =
                Synthetic { users: 200, items: 300, topics: 6, events: 60, consistency: 0.9 };
            (synthetic(sizes, Seed::new(seeds[0])).0, "synthetic")
        }
        Err(error) => return Err(error),
    };
    let workers = Workers::new(context.threads)?;
    let setting = Setting::new(&config.data, data, Seed::new(seeds[0]))?;
    let mut models = models::Models::new(config, context, &setting, &workers);
    let cases: Vec<Case> = config
        .bench
        .requests
        .iter()
        .map(|request| Case::new(&setting, request, Seed::new(seeds[0])))
        .collect::<Result<_>>()?;
    let (originals, retrained) = models.originals_and_retrained(seeds, &cases)?;
    recommenders::compare(config, &setting, name, &originals, &workers, &mut report)?;
    for (at, (case, retrained)) in cases.iter().zip(&retrained).enumerate() {
        requests::run(
            &requests::Comparison {
                config,
                setting: &setting,
                dataset: name,
                originals: &originals,
                seeds,
                workers: &workers,
                full: at == 0,
                folder,
            },
            &mut models,
            (case, retrained),
            &mut report,
        )?;
    }
    // the first figure is the paper's picture: the circuit instead of the calibration
    let calibration = report.figures.len().min(1);
    report.figures.rotate_left(calibration);
    let mut report = report.finish()?;
    report.headline = headline::headline(&report.rows);
    Ok(report)
}
