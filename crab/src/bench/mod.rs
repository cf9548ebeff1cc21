//! `bench`: CRAB against its controls, ablations and baselines on real data.
//!
//! Every variant of Stage 2 starts from the same trained model and gets the same epochs; the
//! control "same budget, no split" is one of them. Settings of ours are chosen on validation cases.

mod figures;
mod methods;
pub mod released;

use std::collections::BTreeMap;

use common::assets::Assets;
use common::cli::Profile;
use common::report::{Report, Role, Row};
use common::rng::Seed;
use common::{Error, Result, stats};

use crate::config::{BenchData, BenchDataset, Config};
use crate::data::{self, Dataset};
use crate::eval::Scores;

/// Where a bench finds data and models.
#[derive(Clone)]
pub struct Context {
    /// Models and data sets.
    pub assets: Assets,
    /// Size of the run.
    pub profile: Profile,
    /// Compute threads; they change no number.
    pub threads: usize,
}

/// One method over all seeds.
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) note: String,
    pub(crate) scores: Vec<Scores>,
    pub(crate) seconds: f64,
}

/// Runs all data sets. One whose asset is absent leaves a "not run" row.
///
/// # Errors
/// Anything but an absent asset.
pub fn run(config: &Config, context: &Context, seeds: &[u64]) -> Result<Report> {
    let mut report = Report::new("crab", context.profile.name());
    for bench in &config.bench.datasets {
        let data = match load(bench, &context.assets) {
            Ok(data) => data,
            Err(error @ Error::Asset { .. }) => {
                report.rows.push(absent(bench, &error));
                continue;
            }
            Err(error) => return Err(error),
        };
        let outcome = methods::run(config, bench, &data, context, seeds)?;
        rows(&mut report, &data, &outcome.methods, seeds, context.profile);
        if let Some(found) = &outcome.exact {
            exact(&mut report, &data, found);
        }
        report.figures.extend(figures::all(&data, &outcome));
        if let Some(table) = &data.released {
            report.rows.extend(released::rows(&data, table)?);
        }
    }
    report.finish()
}

fn load(bench: &BenchDataset, assets: &Assets) -> Result<Dataset> {
    let data = match bench.name {
        BenchData::Industrial => data::industrial(assets)?,
        BenchData::Movielens => data::movielens(assets)?,
        BenchData::Beauty => data::beauty(assets)?,
    };
    let most = |n: usize| if n == 0 { usize::MAX } else { n };
    if bench.users == 0 && bench.cases == 0 {
        return Ok(data);
    }
    Ok(data.shrink(most(bench.users), most(bench.cases)))
}

fn absent(bench: &BenchDataset, error: &Error) -> Row {
    let row = Row {
        dataset: format!("{:?}", bench.name),
        method: "CRAB".into(),
        metric: "mgu@10".into(),
        higher_is_better: false,
        ..Row::default()
    };
    row.not_run(&error.to_string())
}

/// The metrics that go into the table.
const SHOWN: [&str; 6] = ["hr@10", "ndcg@10", "mgu@10", "dgu@10", "coverage@10", "tail hr@10"];

fn rows(
    report: &mut Report,
    data: &Dataset,
    outcomes: &[Outcome],
    seeds: &[u64],
    profile: Profile,
) {
    let tests = paired(outcomes, seeds);
    for shown in SHOWN {
        for outcome in outcomes {
            let pick = |scores: &Scores| scores.named().into_iter().find(|(n, _, _)| *n == shown);
            let values: Vec<f64> =
                outcome.scores.iter().filter_map(pick).map(|(_, value, _)| value).collect();
            let better = outcome.scores.first().and_then(pick).is_none_or(|(_, _, up)| up);
            if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
                continue;
            }
            let mut notes = vec![outcome.note.clone(), data.note.clone()];
            if shown == "ndcg@10" {
                notes.extend(tests.get(&outcome.name).cloned());
            }
            if profile == Profile::Smoke {
                notes.push("Small models and a part of the data: a test of the machinery.".into());
            }
            notes.retain(|note| !note.is_empty());
            let row = Row {
                claim: "less popularity bias at equal accuracy".into(),
                dataset: data.name.clone(),
                method: outcome.name.clone(),
                role: outcome.role,
                metric: shown.into(),
                higher_is_better: better,
                n: data.test.len(),
                seconds: Some(outcome.seconds),
                note: (!notes.is_empty()).then(|| notes.join(" ")),
                ..Row::default()
            };
            report.rows.push(row.over_seeds(&values));
        }
    }
    changes(report, data, outcomes);
}

/// The oracle row: HR@10 of beam search and of scoring every item.
fn exact(report: &mut Report, data: &Dataset, exact: &methods::Exact) {
    let found =
        [(format!("{} beams", exact.beams), exact.beam), ("every item scored".into(), exact.exact)];
    for (method, value) in found {
        let row = Row {
            claim: "beam search finds what exact scoring finds".into(),
            dataset: data.name.clone(),
            method: format!("{}, {method}", methods::BASE),
            role: Role::Control,
            metric: "hr@10 of the oracle's cases".into(),
            n: exact.cases,
            note: Some("First seed; every answer is an item of the trie, no id is invalid.".into()),
            ..Row::default()
        };
        report.rows.push(row.over_seeds(&[value]));
    }
}

/// Change of MGU@10 in per cent against the model before CRAB, as the paper states it, and against
/// the control of the same budget, which the paper has not.
fn changes(report: &mut Report, data: &Dataset, outcomes: &[Outcome]) {
    let find = |name: &str| outcomes.iter().find(|outcome| outcome.name == name);
    let (Some(base), Some(control)) = (find(methods::BASE), find(methods::CONTROL)) else { return };
    for outcome in outcomes.iter().filter(|o| matches!(o.role, Role::Paper | Role::Ours)) {
        for (against, name) in [(base, "the base model"), (control, "the equal-budget control")] {
            if outcome.name == against.name {
                continue;
            }
            let pairs = outcome.scores.iter().zip(&against.scores);
            let change: Vec<f64> = pairs.map(|(a, b)| 100.0 * (a.mgu / b.mgu - 1.0)).collect();
            if change.iter().any(|value| !value.is_finite()) {
                continue;
            }
            let published = outcome.role == Role::Paper
                && against.name == methods::BASE
                && data.name == "Industrial";
            let mut note = format!("Per cent against {name}.");
            if published {
                note.push_str(
                    " The paper's -16.5 % is on Qwen2-0.5B with all training rows, as a public \
                     summary gives it; its table is not readable.",
                );
            }
            let row = Row {
                claim: "less popularity bias at equal accuracy".into(),
                dataset: data.name.clone(),
                method: outcome.name.clone(),
                role: outcome.role,
                metric: format!("mgu@10 change against {name}"),
                higher_is_better: false,
                n: data.test.len(),
                paper_value: published.then_some(-16.5),
                note: Some(note),
                ..Row::default()
            };
            report.rows.push(row.over_seeds(&change));
        }
    }
}

/// NDCG@10 of every method against the control, paired by case (mean over seeds): difference with
/// its bootstrap interval, and Wilcoxon's p after Holm over all methods of the data set.
fn paired(outcomes: &[Outcome], seeds: &[u64]) -> BTreeMap<String, String> {
    let Some(control) = outcomes.iter().find(|o| o.name == methods::CONTROL) else {
        return BTreeMap::new();
    };
    let mean = |o: &Outcome| -> Vec<f64> {
        let cases = o.scores.first().map_or(0, |scores| scores.gains.len());
        let total = |at: usize| o.scores.iter().map(|scores| scores.gains[at]).sum::<f64>();
        (0..cases).map(|at| total(at) / o.scores.len() as f64).collect()
    };
    let others: Vec<&Outcome> = outcomes.iter().filter(|o| o.name != control.name).collect();
    let theirs = mean(control);
    let difference =
        |o: &&Outcome| -> Vec<f64> { mean(o).iter().zip(&theirs).map(|(a, b)| a - b).collect() };
    let differences: Vec<Vec<f64>> = others.iter().map(difference).collect();
    let p_values: Vec<f64> = differences.iter().map(|d| stats::wilcoxon(d)).collect();
    let seed = Seed::new(seeds.first().copied().unwrap_or(0));
    let text = |((other, difference), p): ((&&Outcome, &Vec<f64>), f64)| {
        let mut stream = seed.stream("bootstrap/control");
        let [low, high] = stats::bootstrap_ci(difference.len(), 1000, &mut stream, |at| {
            at.iter().map(|&i| difference[i]).sum::<f64>() / at.len() as f64
        });
        let (mean, _) = stats::mean_sd(difference);
        let text = format!(
            "Against the control: {mean:+.4} (95 % of bootstrap over cases {low:+.4} to \
             {high:+.4}; Wilcoxon with Holm p = {p:.3})."
        );
        (other.name.clone(), text)
    };
    others.iter().zip(&differences).zip(stats::holm(&p_values)).map(text).collect()
}

/// Mean over seeds of each named metric.
pub(crate) fn means(outcome: &Outcome) -> BTreeMap<&'static str, f64> {
    let mut sums: BTreeMap<&'static str, f64> = BTreeMap::new();
    for scores in &outcome.scores {
        for (name, value, _) in scores.named() {
            *sums.entry(name).or_insert(0.0) += value / outcome.scores.len() as f64;
        }
    }
    sums
}
