//! `fit`, `predict`, `merge`, `eval`: from votes to labels.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::cli::{CommonArgs, Resolved};
use common::data::{ReadOptions, Table, Values, split, write};
use common::rng::Seed;
use common::{Error, Result, stats};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;

use crate::config::{AggregateConfig, Config};
use crate::data::{AttributeVotes, Gold, Schema, VoteStats, read_gold, read_votes};
use crate::ensemble::{self, Ensemble, Prediction};
use crate::eval::{self, DroppedWorker};
use crate::train::{self, Consensus, Evidence, Method, Shared};
use crate::votes::{Label, Votes};
use common::cli::text::{self, percent};

/// Flags of `fit`.
#[derive(Debug, clap::Args)]
pub struct FitArgs {
    /// Vote files (.csv, .tsv, .jsonl, .parquet), long or wide form; several are taken together
    #[arg(required = true)]
    pub votes: Vec<PathBuf>,
    /// Attribute schema that closes the label sets
    #[arg(long, value_name = "FILE")]
    pub attributes: Option<PathBuf>,
    /// Known labels (item, truth and, if there, attribute) that anchor the weights
    #[arg(long, value_name = "FILE")]
    pub gold: Option<PathBuf>,
    /// Model to write
    #[arg(long, value_name = "FILE", default_value = "model.json")]
    pub model: PathBuf,
    /// Labels of the votes' items, to write as well
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Earlier model to start from when votes were added: IWMV then needs fewer rounds
    #[arg(long, value_name = "FILE")]
    pub start: Option<PathBuf>,
    /// Report what dropping each worker would save and cost (one fit per worker)
    #[arg(long)]
    pub label_cost: bool,
}

/// Flags of `predict`.
#[derive(Debug, clap::Args)]
pub struct PredictArgs {
    /// Vote file (.csv, .tsv, .jsonl, .parquet), long or wide form
    pub votes: PathBuf,
    /// Model of `fit`; without it the votes' own consensus is fitted
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Attribute schema that closes the label sets
    #[arg(long, value_name = "FILE")]
    pub attributes: Option<PathBuf>,
    /// File to write; with --shard a folder of part files
    #[arg(long, value_name = "FILE", default_value = "labels.csv")]
    pub labels: PathBuf,
    /// Label only the i-th of n shards (1-based) by the hash of the item; needs --model
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
}

/// Flags of `merge`.
#[derive(Debug, clap::Args)]
pub struct MergeArgs {
    /// Folder of part files
    pub parts: PathBuf,
    /// File to write
    #[arg(long, value_name = "FILE", default_value = "labels.csv")]
    pub labels: PathBuf,
}

/// Flags of `eval`.
#[derive(Debug, clap::Args)]
pub struct EvalArgs {
    /// Vote file (.csv, .tsv, .jsonl, .parquet), long or wide form
    pub votes: PathBuf,
    /// True labels: item, truth and, if there, attribute
    #[arg(long, value_name = "FILE")]
    pub gold: PathBuf,
    /// Attribute schema that closes the label sets
    #[arg(long, value_name = "FILE")]
    pub attributes: Option<PathBuf>,
}

/// One of n shards, 1-based.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |(index, count): (&str, &str)| {
            let (index, count) = (index.parse().ok()?, count.parse().ok()?);
            (1 <= index && index <= count && count <= 100_000).then_some(Self { index, count })
        };
        text.split_once('/').and_then(parse).ok_or_else(|| "expected i/n with 1 ≤ i ≤ n".to_owned())
    }
}

pub(super) fn fit(fit: &FitArgs, args: &CommonArgs, resolved: &Resolved<Config>) -> Result<String> {
    let config = &resolved.config;
    let schema = super::schema(&fit.attributes)?;
    let (attributes, stats) = read_all(&fit.votes, config, schema.as_ref())?;
    let gold = fit.gold.as_deref().map(|path| read_gold(path, &config.input)).transpose()?;
    let start = fit.start.as_deref().map(Ensemble::read).transpose()?;
    let (ensemble, labelled) = fit_all(&attributes, gold.as_ref(), start.as_ref(), config)?;
    let costs =
        if fit.label_cost { label_costs(&attributes, gold.as_ref(), config)? } else { Vec::new() };
    ensemble.write(&fit.model)?;
    if let Some(path) = &fit.labels {
        write_labels(path, &labelled)?;
    }
    if args.json {
        let mut out = json!({ "input": stats, "model": ensemble });
        if fit.label_cost {
            let costs: BTreeMap<_, _> = costs.into_iter().collect();
            out["label_cost"] = json!(costs);
        }
        return text::json(&out);
    }
    let mut rows = Vec::new();
    for attribute in &ensemble.attributes {
        for worker in &attribute.workers {
            rows.push(vec![
                attribute.name.clone(),
                worker.name.clone(),
                worker.votes.to_string(),
                percent(worker.accuracy),
                format!("{:.3}", worker.weight),
            ]);
        }
    }
    let header = ["attribute", "worker", "votes", "estimated accuracy %", "weight"];
    let mut text = format!("{} in {}\n\n", config.aggregate.method.name(), fit.model.display());
    text.push_str(&text::table(&header, &rows));
    for attribute in &ensemble.attributes {
        for warning in &attribute.warnings {
            tracing::warn!("attribute {:?}: {warning}", attribute.name);
        }
        if let Some(bound) = attribute.error_bound {
            text.push_str(&format!(
                "\n{}: P(wrong label) ≤ {bound:.3} per item (Eq. 5, if workers err independently)",
                if attribute.name.is_empty() { "all items" } else { &attribute.name }
            ));
        }
    }
    text.push('\n');
    if fit.label_cost {
        text.push_str(&cost_table(&costs));
    }
    Ok(text)
}

/// The votes of several files, taken together by attribute, item and worker.
fn read_all(
    files: &[PathBuf],
    config: &Config,
    schema: Option<&Schema>,
) -> Result<(AttributeVotes, VoteStats)> {
    let mut all = AttributeVotes::new();
    let mut stats = VoteStats::default();
    for file in files {
        let (attributes, read) = read_votes(file, &config.input, schema)?;
        stats.rows += read.rows;
        stats.missing += read.missing;
        stats.unknown_labels += read.unknown_labels;
        for (name, votes) in attributes {
            match all.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => {
                    *known = known
                        .merged(&votes, config.input.duplicates)
                        .map_err(|error| error.in_file(file))?;
                }
                None => all.push((name, votes)),
            }
        }
    }
    Ok((all, stats))
}

/// What dropping each worker would save and cost, per attribute.
fn label_costs(
    attributes: &AttributeVotes,
    gold: Option<&Gold>,
    config: &Config,
) -> Result<Vec<(String, Vec<DroppedWorker>)>> {
    let AggregateConfig { method, options, .. } = &config.aggregate;
    attributes
        .iter()
        .map(|(name, votes)| {
            let known = gold.map(|gold| gold_codes(gold, name, votes)).unwrap_or_default();
            Ok((name.clone(), eval::label_cost(votes, *method, options, &known)?))
        })
        .collect()
}

fn cost_table(costs: &[(String, Vec<DroppedWorker>)]) -> String {
    let mut rows = Vec::new();
    for (attribute, dropped) in costs {
        for worker in dropped {
            let lost = worker.accuracy_lost;
            rows.push(vec![
                attribute.clone(),
                worker.worker.clone(),
                worker.votes_saved.to_string(),
                percent(Some(worker.same_labels)),
                lost.map_or_else(|| "–".to_owned(), |lost| format!("{:+.2}", 100.0 * lost)),
            ]);
        }
    }
    let header = ["attribute", "without", "calls saved", "same labels %", "accuracy lost, points"];
    format!("\n{}", text::table(&header, &rows))
}

/// Weights of an earlier model for the workers of `votes`; new ones start with the mean weight.
/// Empty (start afresh) where the model does not know the attribute or its mean is not above 0.
fn start_weights(start: Option<&Ensemble>, attribute: &str, votes: &Votes) -> Vec<f64> {
    let known = start.and_then(|model| model.attributes.iter().find(|a| a.name == attribute));
    let Some(model) = known else { return Vec::new() };
    let mean =
        model.workers.iter().map(|w| w.weight).sum::<f64>() / model.workers.len().max(1) as f64;
    if mean.is_nan() || mean <= 0.0 {
        return Vec::new();
    }
    let weight = |worker: usize| {
        let name = votes.workers.name(worker);
        model.workers.iter().find(|w| w.name == name).map_or(mean, |w| w.weight)
    };
    (0..votes.workers.len()).map(weight).collect()
}

/// Fits every attribute; returns the model and the labels of the items.
fn fit_all(
    attributes: &AttributeVotes,
    gold: Option<&Gold>,
    start: Option<&Ensemble>,
    config: &Config,
) -> Result<(Ensemble, Vec<Prediction>)> {
    let AggregateConfig { method, options, shared, calibrate, .. } = &config.aggregate;
    let mut evidence: Vec<Evidence> = attributes
        .iter()
        .map(|(name, votes)| Evidence {
            gold: gold.map(|gold| gold_codes(gold, name, votes)).unwrap_or_default(),
            weights: start_weights(start, name, votes),
            ..Evidence::default()
        })
        .collect();
    let fit = |evidence: &[Evidence]| -> Result<Vec<Consensus>> {
        let both = attributes.par_iter().zip(evidence);
        both.map(|((_, votes), evidence)| train::fit(votes, *method, evidence, options)).collect()
    };
    let mut results = fit(&evidence)?;
    if *shared {
        let votes = attributes.iter().map(|(_, votes)| votes);
        let workers = Shared::learn(votes.zip(&results));
        for ((_, votes), evidence) in attributes.iter().zip(&mut evidence) {
            evidence.prior = workers.prior(votes);
        }
        results = fit(&evidence)?;
    }
    let mut calibration = vec![None; attributes.len()];
    if *calibrate {
        // Gold rows are fixed in the fit; how sure it is without them is what has to be judged.
        let free: Vec<Evidence> =
            evidence.iter().map(|e| Evidence { gold: Vec::new(), ..e.clone() }).collect();
        for (at, result) in fit(&free)?.iter().enumerate() {
            let votes = &attributes[at].1;
            let posterior = ensemble::posterior(votes, result);
            let calibrated =
                eval::calibrate_posterior(votes, result, &posterior, &evidence[at].gold);
            calibration[at] = Some(calibrated.exponent);
        }
    }
    let mut ensemble = Ensemble::new(&config.aggregate);
    let mut labelled = Vec::new();
    for (((name, votes), result), exponent) in attributes.iter().zip(&results).zip(calibration) {
        ensemble.add(name, votes, result, exponent);
        labelled.extend(ensemble::labelled(name, votes, result, &config.aggregate, exponent));
    }
    Ok((ensemble, labelled))
}

/// Gold label per item of `votes`; labels that nobody voted for count as unknown.
fn gold_codes(gold: &Gold, attribute: &str, votes: &Votes) -> Vec<Option<Label>> {
    let known = gold.get(attribute).or_else(|| gold.get(""));
    (0..votes.items.len())
        .map(|item| {
            let label = known?.get(&votes.items.name(item))?;
            votes.labels.position(label).map(|code| code as Label)
        })
        .collect()
}

pub(super) fn predict(
    predict: &PredictArgs,
    args: &CommonArgs,
    resolved: &Resolved<Config>,
) -> Result<String> {
    let config = &resolved.config;
    let schema = super::schema(&predict.attributes)?;
    let model = predict.model.as_deref().map(Ensemble::read).transpose()?;
    let part = match (predict.shard, &predict.model) {
        (None, _) => None,
        (Some(_), None) => {
            return Err(Error::usage(
                "--shard needs --model: a shard's own votes would give other weights; run `fit` \
                 on all votes first",
            ));
        }
        (Some(shard), Some(model)) => {
            let key = input_hash(&[&predict.votes, model], resolved)?;
            Some((shard, part_path(&predict.labels, shard, &key)))
        }
    };
    if let Some((_, path)) = &part
        && path.exists()
    {
        return summary(args, path, Table::read(path, &part_options())?.len(), true);
    }
    let (attributes, _) = read_votes(&predict.votes, &config.input, schema.as_ref())?;
    let mut labelled = match &model {
        Some(model) => {
            let mut all = Vec::new();
            for (name, votes) in &attributes {
                all.extend(model.predict(name, votes, &config.aggregate)?);
            }
            all
        }
        None => fit_all(&attributes, None, None, config)?.1,
    };
    let path = match part {
        None => predict.labels.clone(),
        Some((shard, path)) => {
            labelled.retain(|p| split::shard_of(&p.item, shard.count) == shard.index - 1);
            std::fs::create_dir_all(&predict.labels).map_err(Error::io(&predict.labels))?;
            path
        }
    };
    write_labels(&path, &labelled)?;
    summary(args, &path, labelled.len(), false)
}

fn summary(args: &CommonArgs, path: &Path, rows: usize, done_before: bool) -> Result<String> {
    if args.json {
        return text::json(&json!({ "labels": path, "rows": rows, "done_before": done_before }));
    }
    let before = if done_before { " (done before, nothing to do)" } else { "" };
    Ok(format!("{rows} labels in {}{before}\n", path.display()))
}

/// Files by content, and the config: two shards belong together only if all agree.
fn input_hash(files: &[&Path], resolved: &Resolved<Config>) -> Result<String> {
    let mut text = resolved.hash8();
    for file in files {
        let bytes = std::fs::read(file).map_err(Error::io(file))?;
        text.push_str(&common::run::hash8(&bytes));
    }
    Ok(common::run::hash8(text.as_bytes()))
}

fn part_path(folder: &Path, shard: Shard, key: &str) -> PathBuf {
    folder.join(format!("part-{:05}-of-{:05}-{key}.csv", shard.index, shard.count))
}

fn part_options() -> ReadOptions {
    ReadOptions { allow_empty: true, ..ReadOptions::select(&COLUMNS) }
}

const COLUMNS: [&str; 5] = ["attribute", "item", "label", "confidence", "votes"];

/// Sorted by attribute and item, so that the order does not depend on shards.
fn write_labels(path: &Path, labelled: &[Prediction]) -> Result<()> {
    let mut order: Vec<&Prediction> = labelled.iter().collect();
    order.sort_by(|a, b| (&a.attribute, &a.item).cmp(&(&b.attribute, &b.item)));
    let text = |pick: fn(&Prediction) -> &String| -> Vec<String> {
        order.iter().map(|p| pick(p).clone()).collect()
    };
    let attributes = text(|p| &p.attribute);
    let items = text(|p| &p.item);
    let labels = text(|p| &p.label);
    let confidence: Vec<f64> = order.iter().map(|p| p.confidence.unwrap_or(f64::NAN)).collect();
    let votes: Vec<i64> = order.iter().map(|p| p.votes as i64).collect();
    write(
        path,
        &[
            ("attribute", Values::Text(&attributes)),
            ("item", Values::Text(&items)),
            ("label", Values::Text(&labels)),
            ("confidence", Values::Real(&confidence)),
            ("votes", Values::Integer(&votes)),
        ],
    )
}

pub(super) fn merge(merge: &MergeArgs, args: &CommonArgs) -> Result<String> {
    let folder = &merge.parts;
    let mut parts = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(part) = parse_part(&name) {
            parts.push((part, path));
        }
    }
    parts.sort();
    let Some(((_, count, key), _)) = parts.first().cloned() else {
        return Err(
            Error::data("no part file", "the folder that predict --shard wrote").in_file(folder)
        );
    };
    if let Some((_, other)) = parts.iter().find(|((_, c, k), _)| (*c, k) != (count, &key)) {
        return Err(Error::data(
            format!("{} beside parts of another run", other.display()),
            "parts of one run (same votes, model, config and number of shards) only",
        )
        .in_file(folder));
    }
    let missing: Vec<String> = (1..=count)
        .filter(|index| !parts.iter().any(|((i, _, _), _)| i == index))
        .map(|index| format!("{index}/{count}"))
        .collect();
    if !missing.is_empty() {
        return Err(Error::data(
            format!("{} of {count} shards", parts.len()),
            format!("all of them; run predict --shard for {}", missing.join(", ")),
        )
        .in_file(folder));
    }
    let mut labelled = Vec::new();
    for (_, path) in &parts {
        let table = Table::read(path, &part_options())?;
        for row in 0..table.len() {
            let text = |column: usize| table.text(row, column).to_owned();
            let votes = table.column("votes")?.cell(row).i64()?;
            labelled.push(Prediction {
                attribute: text(0),
                item: text(1),
                label: text(2),
                confidence: text(3).parse().ok(),
                votes: votes.unsigned_abs() as usize,
            });
        }
    }
    write_labels(&merge.labels, &labelled)?;
    summary(args, &merge.labels, labelled.len(), false)
}

/// (index, count, key) of `part-00001-of-00004-0a1b2c3d.csv`.
fn parse_part(name: &str) -> Option<(usize, usize, String)> {
    let rest = name.strip_prefix("part-")?.strip_suffix(".csv")?;
    let (index, rest) = rest.split_once("-of-")?;
    let (count, key) = rest.split_once('-')?;
    Some((index.parse().ok()?, count.parse().ok()?, key.to_owned()))
}

/// One method's result on one attribute.
#[derive(Debug, Serialize)]
struct EvalRow {
    attribute: String,
    method: String,
    accuracy: f64,
    ci95: [f64; 2],
    rounds: Option<usize>,
    ties: Option<usize>,
    items: usize,
}

pub(super) fn eval(
    eval: &EvalArgs,
    args: &CommonArgs,
    resolved: &Resolved<Config>,
) -> Result<String> {
    let config = &resolved.config;
    let schema = super::schema(&eval.attributes)?;
    let (attributes, _) = read_votes(&eval.votes, &config.input, schema.as_ref())?;
    let gold = read_gold(&eval.gold, &config.input)?;
    let seed = Seed::new(args.seed);
    let mut rows = Vec::new();
    for (name, votes) in &attributes {
        let known = gold_codes(&gold, name, votes);
        let items = known.iter().flatten().count();
        if items == 0 {
            return Err(Error::data(
                format!("no true label for any item of attribute {name:?}"),
                "gold rows with items and labels of the vote file",
            )
            .in_file(&eval.gold));
        }
        let mut add = |method: &str, correct: Vec<f64>, rounds, ties| {
            let mean = |at: &[usize]| at.iter().map(|&i| correct[i]).sum::<f64>() / at.len() as f64;
            let mut stream = seed.stream("bootstrap/eval");
            let resamples = config.bench.resamples;
            rows.push(EvalRow {
                attribute: name.clone(),
                method: method.to_owned(),
                accuracy: stats::mean_sd(&correct).0,
                ci95: stats::bootstrap_ci(correct.len(), resamples, &mut stream, mean),
                rounds,
                ties,
                items,
            });
        };
        for &method in Method::ALL.iter().filter(|&&method| method != Method::Wmv) {
            let options = &config.aggregate.options;
            let result = train::fit(votes, method, &Evidence::default(), options)?;
            let correct = eval::correctness(&result, &known).into_iter().flatten().collect();
            add(method.name(), correct, Some(result.rounds), Some(result.ties));
        }
        // With many workers (crowds) the single ones are no candidates.
        if votes.workers.len() <= 20 {
            for worker in 0..votes.workers.len() {
                let correct = single(votes, worker, &known);
                add(&format!("worker {}", votes.workers.name(worker)), correct, None, None);
            }
        }
    }
    if args.json {
        return text::json(&rows);
    }
    let number = |value: Option<usize>| value.map_or_else(|| "–".to_owned(), |n| n.to_string());
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.attribute.clone(),
                row.method.clone(),
                percent(Some(row.accuracy)),
                format!("{:.1} to {:.1}", 100.0 * row.ci95[0], 100.0 * row.ci95[1]),
                number(row.rounds),
                number(row.ties),
                row.items.to_string(),
            ]
        })
        .collect();
    let header = ["attribute", "method", "accuracy %", "95 % interval", "rounds", "ties", "items"];
    Ok(text::table(&header, &cells))
}

/// Whether one worker is right per gold item; 0 where it did not answer.
fn single(votes: &Votes, worker: usize, gold: &[Option<Label>]) -> Vec<f64> {
    let right = |(item, truth): (usize, &Option<Label>)| {
        let truth = (*truth)?;
        let own: Vec<Label> = votes.of(item).filter(|v| v.0 == worker).map(|v| v.1).collect();
        let hits = own.iter().filter(|&&label| label == truth).count();
        Some(hits as f64 / own.len().max(1) as f64)
    };
    gold.iter().enumerate().filter_map(right).collect()
}
