//! `bench`: the paper's comparison on two public proxies and on data whose truth is known.
//!
//! | part | ads | module |
//! |---|---|---|
//! | MovieLens-100k | films hidden from training | `part` with `crate::data::movielens` |
//! | clothing reviews | garments hidden from training | `part` with `crate::data::clothing` |
//! | synth | generated, an oracle instead of the LLM | `synth` |

mod controls;
mod llm;
mod part;
mod synth;
mod warm;

use common::assets::Assets;
use common::cli::Profile;
use common::data::movielens::MovieLens;
use common::llm::LlmOptions;
use common::report::{Report, Role, Row};
use common::rng::Seed;
use common::{Error, Result};

use crate::config::Config;
use crate::data::{ColdSplit, clothing, movielens};

/// Where a bench finds models and data.
#[derive(Clone)]
pub struct Context {
    /// Models and data sets.
    pub assets: Assets,
    /// Answer cache and patience of LLMs.
    pub llm: LlmOptions,
    /// Size of the run.
    pub profile: Profile,
    /// Seed of splits, samples and resamples.
    pub seed: u64,
}

/// Runs all parts. A part whose data is absent leaves a "not run" row with the reason.
///
/// # Errors
/// Anything but an absent asset.
pub fn run(config: &Config, context: &Context) -> Result<Report> {
    let mut report = Report::new("llm-hyper", context.profile.name());
    let seed = Seed::new(context.seed);
    let mut sentences = Vec::new();
    let llm = llm::BenchLlm::new(config, context);
    match context.assets.folder("ml-100k") {
        Ok(folder) => {
            let source = MovieLens::read(&folder)?;
            let (data, split) = movielens::movielens(&source, &config.bench.movielens, seed)?;
            let part = part::Part::new(config, context, &data, &split, &llm)?;
            sentences.push(part.run(&mut report)?);
        }
        Err(error) => absent(error, "ml-100k click", &mut report)?,
    }
    match context.assets.file("clothing-reviews", "reviews.parquet") {
        Ok(path) => {
            let data = clothing::clothing(&path, config.bench.clothing_reviews)?;
            let split = clothing_split(config, &data, seed)?;
            let part = part::Part::new(config, context, &data, &split, &llm)?;
            sentences.push(part.run(&mut report)?);
        }
        Err(error) => absent(error, "clothing-reviews", &mut report)?,
    }
    if config.bench.synth_ads > 0 {
        synth::run(config, context, &mut report)?;
    }
    report.rows.extend(cost(&llm));
    report.rows.extend(walmart());
    let mut report = report.finish()?;
    // One sentence a data set; without any, what the rows say in general.
    if !sentences.is_empty() {
        report.headline = sentences.join(" ");
    }
    Ok(report)
}

/// What all prompts of the run cost.
fn cost(llm: &llm::BenchLlm<'_>) -> Vec<Row> {
    let spent = llm.spent();
    let ads = spent.tally.ads.max(1) as f64;
    let note = format!(
        "{} prompts with {}, content-free ones included{}; {} of {} weights from the fallback; the \
         seconds hold the end-to-end ranking too",
        spent.tally.prompts,
        llm.name(),
        if spent.exact { "" } else { ", tokens estimated at four bytes each" },
        spent.tally.unusable,
        spent.tally.weights
    );
    [
        ("tokens per ad and prompt set", spent.tally.tokens),
        ("tokens per ad saved by the shared prefix", spent.tally.tokens_saved),
    ]
    .into_iter()
    .map(|(metric, tokens)| Row {
        claim: "features are short continuations of one shared prefix".into(),
        metric: metric.into(),
        higher_is_better: metric.contains("saved"),
        mean: Some(tokens as f64 / ads),
        n: spent.tally.ads,
        note: Some(note.clone()),
        seconds: Some(spent.seconds),
        ..base("all parts", "LLM prompts", Role::Ablation)
    })
    .collect()
}

/// Garments at random; a fifth of all reviewers only evaluates.
fn clothing_split(config: &Config, data: &crate::data::Dataset, seed: Seed) -> Result<ColdSplit> {
    let mut stream = seed.stream("clothing/cold");
    let wanted = config.bench.clothing_active;
    if data.ads.len() < 2 * wanted {
        return Err(Error::usage(format!(
            "bench.clothing_active = {wanted}: only {} garments have {} reviews, and at least as \
             many must stay retired",
            data.ads.len(),
            config.bench.clothing_reviews
        )));
    }
    let mut active = stream.sample(data.ads.len(), wanted);
    active.sort_unstable();
    let retired = (0..data.ads.len()).filter(|ad| !active.contains(ad)).collect();
    Ok(ColdSplit::new(retired, active, data.users, 0.5, &mut stream))
}

/// A "not run" row in place of a part whose asset is absent; other errors pass.
fn absent(error: Error, dataset: &str, report: &mut Report) -> Result<()> {
    match error {
        Error::Asset { .. } => {
            report.rows.push(base(dataset, "all", Role::Paper).not_run(&error.to_string()));
            Ok(())
        }
        other => Err(other),
    }
}

/// A row without a number.
fn base(dataset: &str, method: &str, role: Role) -> Row {
    Row {
        claim: "LLM-written weights rank cold ads better than the median of past weights".into(),
        dataset: dataset.into(),
        method: method.into(),
        role,
        metric: "auc per ad".into(),
        ..Row::default()
    }
}

/// The paper's own table as a public summary gives it, for reference. Its data is internal.
fn walmart() -> Vec<Row> {
    let methods = [
        ("LLM-HYPER, Gemini-2.5-Pro", Role::Paper, [0.6722, 0.0456, 0.0792]),
        ("LR_warm", Role::Baseline, [0.7005, 0.0639, 0.0871]),
        ("LR_cold (median)", Role::Baseline, [0.5593, 0.0328, 0.0508]),
    ];
    let mut rows = Vec::new();
    for (method, role, values) in methods {
        for (metric, value) in ["auc", "ndcg@5", "ndcg@10"].into_iter().zip(values) {
            let row = Row {
                metric: metric.into(),
                paper_value: Some(value),
                ..base("Walmart homepage ads", method, role)
            };
            rows.push(row.not_run(
                "internal data of Walmart; the paper's number as a public summary gives it, for \
                 reference only",
            ));
        }
    }
    rows
}
