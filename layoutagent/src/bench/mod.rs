//! `bench`: the comparison, in four parts.
//!
//! | part | scenes | module |
//! |---|---|---|
//! | (a) | generated worlds of 2 to 5 objects, Diffusion-CCSP's protocol; crowds | [`worlds`] |
//! | (b) | NSR-1K: captions with real boxes | [`nsr`] |
//! | (c) | hand-written product scenes, rendered | [`products`] |
//! | (d) | composites of held-out emoji, cut out | [`segment`] |

pub mod nsr;
pub mod products;
pub mod segment;
pub mod worlds;

use common::assets::Assets;
use common::cli::Profile;
use common::report::{Report, Role, Row};
use common::rng::Stream;
use common::{Error, Result, stats};

use crate::config::Config;
use crate::networks;
use crate::solve::{Candidate, SolveConfig, Solver};

/// Where a bench finds its data, and how much it may use.
#[derive(Clone)]
pub struct Context {
    /// Models and data sets.
    pub assets: Assets,
    /// Size of the run.
    pub profile: Profile,
    /// Compute threads.
    pub threads: usize,
}

/// Runs all parts. A part whose data is absent leaves a "not run" row with the reason.
///
/// # Errors
/// Anything but an absent asset.
pub fn run(config: &Config, context: &Context, seed: u64) -> Result<Report> {
    let mut report = Report::new("layoutagent", context.profile.name());
    let sampler = networks::sampler(config, seed, context.threads, &context.assets)?;
    let parts = Parts { config, context, seed, sampler: &sampler };
    worlds::run(&parts, &mut report)?;
    for (part, dataset) in [
        (nsr::run as fn(&Parts<'_>, &mut Report) -> Result<()>, "NSR-1K spatial train"),
        (products::run, "product scenes"),
        (segment::run, "held-out emoji"),
    ] {
        match part(&parts, &mut report) {
            Err(error @ Error::Asset { .. }) => report.rows.push(
                Row {
                    dataset: dataset.into(),
                    role: Role::Ours,
                    metric: "all".into(),
                    ..Row::default()
                }
                .not_run(&error.to_string()),
            ),
            other => other?,
        }
    }
    report.rows.push(
        Row {
            claim: "better coherence, realism and aesthetics than layout generators".into(),
            dataset: "the paper's own data".into(),
            method: "LayoutAgent".into(),
            role: Role::Paper,
            metric: "judge score".into(),
            ..Row::default()
        }
        .not_run("data, baselines and numbers of the paper are not public"),
    );
    report.finish()
}

/// What every part gets.
pub struct Parts<'a> {
    config: &'a Config,
    context: &'a Context,
    seed: u64,
    sampler: &'a crate::model::sampler::Sampler,
}

impl Parts<'_> {
    fn solver(&self, solver: Solver) -> SolveConfig {
        SolveConfig { solver, ..self.config.solve.clone() }
    }
}

/// Number of verified candidates of each problem.
fn verified(solved: &[Vec<Candidate>]) -> Vec<usize> {
    solved.iter().map(|c| c.iter().filter(|c| c.is_verified()).count()).collect()
}

/// A row with the mean of one value per item and its bootstrap interval.
fn mean_row(row: Row, values: &[f64], resamples: usize, stream: &mut Stream) -> Row {
    let values: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    if values.is_empty() {
        return row.not_run("undefined on every item");
    }
    let mean =
        |picked: &[usize]| picked.iter().map(|&at| values[at]).sum::<f64>() / picked.len() as f64;
    let all: Vec<usize> = (0..values.len()).collect();
    let ci95 = stats::bootstrap_ci(values.len(), resamples, stream, mean);
    Row { mean: Some(mean(&all)), ci95: Some(ci95), n: values.len(), ..row }
}
