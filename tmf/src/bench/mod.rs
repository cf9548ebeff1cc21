//! `bench`: the paper's comparison on ML-100k and on synthetic catalogues whose truth is known.

mod ablations;
pub mod bundled;
mod movielens;
mod ranking;
pub mod synthetic;

use std::path::{Path, PathBuf};
use std::time::Instant;

use common::assets::Assets;
use common::checkpoint::Trained;
use common::cli::Profile;
use common::optim::Workers;
use common::report::{Report, Role, Row};
use common::rng::Seed;
use common::{Result, runtime, stats};

use crate::config::Config;

/// What a bench runs with.
pub struct Context {
    /// Models and data sets.
    pub assets: Assets,
    /// Size of the run.
    pub profile: Profile,
    /// One candidate file and one training of the full model each.
    pub seeds: Vec<u64>,
    /// Trained pieces.
    pub kept: Trained,
    /// Trained baselines, which other papers ask for, too.
    pub shared: Trained,
    /// Folder of encoded texts.
    pub encoded: PathBuf,
    /// Folder of the run; candidate files go there.
    pub folder: PathBuf,
    /// Cores.
    pub workers: Workers,
}

impl Context {
    /// Pieces are kept below `cache`; files of the run go to `folder`.
    ///
    /// # Errors
    /// None but bugs.
    pub fn new(
        assets: Assets,
        profile: Profile,
        seeds: &[u64],
        cache: &Path,
        folder: &Path,
        threads: usize,
    ) -> Result<Self> {
        let shared = Trained::new(&assets.options().cache.join("trained"));
        Ok(Self {
            assets,
            shared,
            profile,
            seeds: seeds.to_vec(),
            kept: Trained::new(&cache.join("trained")),
            encoded: cache.join("vectors"),
            folder: folder.to_owned(),
            workers: Workers::new(threads)?,
        })
    }

    /// The first seed, for what is trained once.
    fn base(&self) -> Seed {
        Seed::new(self.seeds.first().copied().unwrap_or(0))
    }
}

/// A training whose result is kept.
type Job<'a> = Box<dyn Fn(&Workers) -> Result<()> + Sync + 'a>;

/// Trains side by side what the tables ask for afterwards: small models use the cores better one
/// per core than one on all of them.
fn ahead(context: &Context, jobs: &[Job<'_>]) -> Result<()> {
    context.workers.map(jobs.len(), |at| {
        common::run::check_interrupt()?;
        jobs[at](&Workers::new(1)?)
    })?;
    Ok(())
}

/// Runs all parts.
///
/// # Errors
/// A damaged asset, an interrupt.
pub fn run(config: &Config, context: &Context) -> Result<Report> {
    let mut report = Report::new("tmf", context.profile.name());
    let catalogues = synthetic::Catalogues::new(config, context)?;
    movielens::run(config, context, catalogues.jobs(context), &mut report)?;
    catalogues.measure(context, &mut report)?;
    report.rows.extend(walmart());
    report.finish()
}

/// One line of the table.
struct Line<'a> {
    dataset: &'a str,
    claim: &'a str,
    method: &'a str,
    role: Role,
    metric: &'a str,
    note: Option<String>,
}

/// Mean over seeds and questions of `credits[seed][question]`; the interval resamples questions,
/// each with all its seeds.
fn row(line: &Line<'_>, credits: &[Vec<f64>], resamples: usize, started: Instant) -> Row {
    let per_question = over_seeds(credits);
    let means: Vec<f64> =
        credits.iter().map(|c| c.iter().sum::<f64>() / c.len().max(1) as f64).collect();
    let mut stream = Seed::new(0).stream(&format!("bootstrap/{}/{}", line.dataset, line.method));
    let mean_of = |indices: &[usize]| {
        indices.iter().map(|&at| per_question[at]).sum::<f64>() / indices.len() as f64
    };
    let (mean, sd) = stats::mean_sd(&means);
    let n = per_question.len();
    Row {
        paper: "tmf".into(),
        claim: line.claim.into(),
        dataset: line.dataset.into(),
        method: line.method.into(),
        role: line.role,
        metric: line.metric.into(),
        mean: Some(mean),
        sd: (means.len() > 1).then_some(sd),
        ci95: Some(stats::bootstrap_ci(n, resamples, &mut stream, mean_of)),
        seeds: means.len(),
        n,
        note: line.note.clone(),
        seconds: Some(started.elapsed().as_secs_f64()),
        peak_rss_mb: Some(runtime::peak_rss_mb()),
        ..Row::default()
    }
}

/// Each question's mean over the seeds.
fn over_seeds(credits: &[Vec<f64>]) -> Vec<f64> {
    let n = credits.first().map_or(0, Vec::len);
    (0..n).map(|at| credits.iter().map(|c| c[at]).sum::<f64>() / credits.len() as f64).collect()
}

/// The paper's own numbers: gains on data that nobody outside can use.
fn walmart() -> Vec<Row> {
    [("Walmart Electronics", 0.3825), ("Walmart Sports", 0.4309)]
        .into_iter()
        .map(|(dataset, gain)| {
            let row = Row {
                paper: "tmf".into(),
                claim: "three modalities beat the baseline".into(),
                dataset: dataset.into(),
                method: "TMF".into(),
                metric: "relative gain in hr@1".into(),
                paper_value: Some(gain),
                ..Row::default()
            };
            row.not_run(
                "internal data of Walmart; the gain over an unnamed baseline as a public summary \
                 gives it, absolute values are unknown",
            )
        })
        .collect()
}
