//! `bench`: the paper's comparison on three kinds of real votes.
//!
//! | part | votes | module |
//! |---|---|---|
//! | (a) | local LLMs and other labelers, asked live about clothing reviews | `live` |
//! | (b) | recorded answers of GPT-3.5 and GPT-4 on AE-110k | [`recorded`] |
//! | (c) | 12 sets of crowd labels | [`crowd`] |

pub mod crowd;
mod live;
pub mod recorded;

use common::assets::Assets;
use common::cli::Profile;
use common::llm::LlmOptions;
use common::report::{Report, Role, Row};
use common::rng::Seed;
use common::{Error, Result};

use crate::config::Config;

/// Where a bench finds models and data.
#[derive(Clone)]
pub struct Context {
    /// Models and data sets.
    pub assets: Assets,
    /// Answer cache and patience of LLMs.
    pub llm: LlmOptions,
    /// Size of the run.
    pub profile: Profile,
    /// Seed of splits, resamples and restarts.
    pub seed: u64,
}

/// Runs all parts. A part whose data is absent leaves a "not run" row with the reason.
///
/// # Errors
/// Anything but an absent asset.
pub fn run(config: &Config, context: &Context) -> Result<Report> {
    let mut report = Report::new("llm-ensemble", context.profile.name());
    live::run(config, context, &mut report)?;
    let (resamples, seed) = (config.bench.resamples, Seed::new(context.seed));
    let smoke = context.profile == Profile::Smoke;
    for (rows, figures) in [
        recorded::run(&context.assets, resamples, seed)?,
        crowd::run(&context.assets, smoke, resamples, seed)?,
    ] {
        report.rows.extend(rows);
        report.figures.extend(figures);
    }
    report.rows.extend(walmart());
    report.finish()
}

/// A "not run" row in place of a part whose asset is absent; other errors pass.
pub(crate) fn absent(error: Error, row: Row, report: &mut Report) -> Result<()> {
    match error {
        Error::Asset { .. } => {
            report.rows.push(row.not_run(&error.to_string()));
            Ok(())
        }
        other => Err(other),
    }
}

/// The paper's own table, for reference. Its data is internal to Walmart.
fn walmart() -> Vec<Row> {
    let methods = [
        ("IWMV", Role::Paper, [0.956, 0.979]),
        ("GPT-4, best single LLM", Role::Baseline, [0.934, 0.952]),
        ("rules", Role::Baseline, [0.710, 0.759]),
        ("logistic regression", Role::Baseline, [0.653, 0.681]),
    ];
    let mut rows = Vec::new();
    for (set, dataset) in ["Walmart-Age", "Walmart-Gender"].into_iter().enumerate() {
        for (method, role, values) in &methods {
            let row = Row {
                paper: "llm-ensemble".into(),
                claim: "the ensemble beats the best single LLM".into(),
                dataset: dataset.into(),
                method: (*method).into(),
                role: *role,
                metric: "accuracy".into(),
                paper_value: Some(values[set]),
                ..Row::default()
            };
            rows.push(row.not_run(
                "internal data of Walmart, sizes unknown; the paper's number as a public summary \
                 gives it, for reference only",
            ));
        }
    }
    rows
}
