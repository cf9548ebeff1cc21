//! `audit` and `rebalance`: on a bare semantic-ID table or on a fitted recommender.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use common::cli::{CommonArgs, text};
use common::data::{ReadOptions, Table, Values, atomic_write, write};
use common::optim::Workers;
use common::report::plot::{Labels, Line, lines};
use common::report::{Figure, Report, Role, Row, html};
use common::rng::Seed;
use common::{Error, Result};
use serde_json::json;

use crate::config::Config;
use crate::model::rebalance::{Rebalanced, rebalance as split};
use crate::saved::Saved;
use crate::sid::{Audit, SidTable, audit as audit_table};
use crate::train::{Task, fine_tune};

/// Flags of `audit`.
#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    /// Semantic IDs as `index.json`: item → codes, for example ["<a_12>", "<b_7>"]
    pub sids: PathBuf,
    /// Training interactions per item, with columns item, count; without it every item counts 1
    #[arg(long, value_name = "FILE")]
    pub counts: Option<PathBuf>,
    /// HTML page to write
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Flags of `rebalance`.
#[derive(Debug, clap::Args)]
pub struct RebalanceArgs {
    /// Semantic IDs as `index.json` (with --counts), split by load alone
    #[arg(long, value_name = "FILE", requires = "counts", conflicts_with = "model")]
    pub sids: Option<PathBuf>,
    /// Training interactions per item, with columns item, count
    #[arg(long, value_name = "FILE")]
    pub counts: Option<PathBuf>,
    /// Folder of a fitted recommender (with --events): split and fine-tuned
    #[arg(long, value_name = "DIR", requires = "events", required_unless_present = "sids")]
    pub model: Option<PathBuf>,
    /// The interactions that the recommender was fitted on
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Folder for the new semantic IDs, the migration table and, with --model, the recommender
    #[arg(long, value_name = "DIR", default_value = "rebalanced")]
    pub output: PathBuf,
}

/// Counts of `ids`; items that the file lacks count 0.
fn read_counts(path: &Path, ids: &[String]) -> Result<Vec<u64>> {
    let table = Table::read(path, &ReadOptions::select(&["item", "count"]))?;
    let (items, values) = (table.column("item")?, table.column("count")?);
    let number: HashMap<&str, usize> =
        ids.iter().enumerate().map(|(at, id)| (id.as_str(), at)).collect();
    let mut counts = vec![0; ids.len()];
    for row in 0..table.len() {
        let at = number
            .get(items.text(row))
            .ok_or_else(|| items.cell(row).error("an item of the semantic-ID table"))?;
        let value = values.cell(row).i64()?;
        counts[*at] +=
            u64::try_from(value).map_err(|_| values.cell(row).error("a count from 0"))?;
    }
    Ok(counts)
}

pub(super) fn audit(args_of: &AuditArgs, args: &CommonArgs) -> Result<String> {
    let (ids, table) = SidTable::read_index(&args_of.sids)?;
    let counts = match &args_of.counts {
        Some(path) => read_counts(path, &ids)?,
        None => vec![1; ids.len()],
    };
    let found = audit_table(&table, &counts);
    if let Some(path) = &args_of.html {
        atomic_write(path, page(&args_of.sids, &found, &table, &counts)?.as_bytes())?;
    }
    if args.json {
        return text::json(&found);
    }
    Ok(format!(
        "{} items, {} different semantic IDs, at most {} items share one; Gini of items {:.3}\n\n{}",
        found.items,
        found.unique,
        found.largest_collision,
        found.item_gini,
        level_table(&found)
    ))
}

fn level_table(audit: &Audit) -> String {
    let header = ["level", "codes", "used", "perplexity", "gini", "top 5 % hold", "largest load"];
    let cells: Vec<Vec<String>> = audit
        .levels
        .iter()
        .map(|level| {
            vec![
                level.level.to_string(),
                level.size.to_string(),
                level.used.to_string(),
                format!("{:.1}", level.perplexity),
                format!("{:.3}", level.gini),
                format!("{:.1} %", 100.0 * level.top5_share),
                level.largest.to_string(),
            ]
        })
        .collect();
    text::table(&header, &cells)
}

/// The audit as one HTML page: rows per level and the loads as curves.
fn page(source: &Path, found: &Audit, table: &SidTable, counts: &[u64]) -> Result<String> {
    let mut report = Report::new("crab audit", "audit");
    for level in &found.levels {
        let values = [
            ("gini of load", level.gini, false),
            ("share of load on the top 5 % of codes", level.top5_share, false),
            ("perplexity", level.perplexity, true),
            ("used codes", level.used as f64, true),
        ];
        for (metric, value, higher_is_better) in values {
            report.rows.push(Row {
                claim: "load of the code book".into(),
                dataset: source.display().to_string(),
                method: format!("level {}", level.level),
                role: Role::Baseline,
                metric: metric.into(),
                higher_is_better,
                mean: value.is_finite().then_some(value),
                note: Some(format!("{} interactions on the fullest code.", level.largest)),
                n: found.items,
                ..Row::default()
            });
        }
    }
    let curves: Vec<Line> = (0..table.levels())
        .map(|level| {
            let mut loads = table.token_popularity(level, counts);
            loads.sort_unstable_by(|a, b| b.cmp(a));
            let points = loads.iter().enumerate();
            Line {
                name: format!("level {level}"),
                points: points.map(|(rank, load)| (rank as f64 + 1.0, *load as f64)).collect(),
            }
        })
        .collect();
    let labels = Labels {
        title: "Load of the codes",
        x: "code, from most to least popular",
        y: "interactions",
    };
    report.figures.push(Figure::new(
        "Load of the codes",
        "Interactions per code of each level.",
        lines(labels, &curves),
    ));
    let notes = [format!(
        "{} items, {} different semantic IDs; at most {} items share one.",
        found.items, found.unique, found.largest_collision
    )];
    let report = report.finish()?;
    Ok(html::page("Audit of semantic IDs", &notes, &[report]))
}

pub(super) fn rebalance(
    verb: &RebalanceArgs,
    args: &CommonArgs,
    config: &Config,
    threads: usize,
) -> Result<String> {
    let seed = Seed::new(args.seed);
    if let (Some(folder), Some(events)) = (&verb.model, &verb.events) {
        let saved = Saved::read(folder)?;
        let options = &config.rebalance;
        let stage1 =
            split(&saved.table, &saved.counts, |level| saved.residuals(level), options, seed)?;
        let data = super::recommend::events_of(&saved, events)?;
        let grown = saved.model.grown(&stage1.parent_of, config.stage2.noise, seed)?;
        let task = Task {
            sequences: &data.train,
            table: &stage1.table,
            valid: &data.valid,
            item_weights: None,
        };
        let (model, _) = fine_tune(
            task,
            grown,
            &options.levels,
            &config.stage2,
            &config.fine_tune,
            &Workers::new(threads)?,
            seed,
        )?;
        let (before, counts, ids) = (saved.table.clone(), saved.counts.clone(), saved.ids.clone());
        let fresh = Saved { table: stage1.table.clone(), model, ..saved };
        fresh.write(&verb.output)?;
        return answer(verb, args, &ids, &before, &counts, &stage1);
    }
    let (Some(sids), Some(counts)) = (&verb.sids, &verb.counts) else {
        return Err(Error::usage("rebalance needs --sids with --counts, or --model with --events"));
    };
    let (ids, table) = SidTable::read_index(sids)?;
    let counts = read_counts(counts, &ids)?;
    let stage1 = split(&table, &counts, |_| None, &config.rebalance, seed)?;
    std::fs::create_dir_all(&verb.output).map_err(Error::io(&verb.output))?;
    stage1.table.write_index(&verb.output.join("index.json"), &ids)?;
    answer(verb, args, &ids, &table, &counts, &stage1)
}

/// Writes the migration table and says what changed.
fn answer(
    verb: &RebalanceArgs,
    args: &CommonArgs,
    ids: &[String],
    before: &SidTable,
    counts: &[u64],
    stage1: &Rebalanced,
) -> Result<String> {
    let joined = |row: &[u32]| row.iter().map(ToString::to_string).collect::<Vec<_>>().join("-");
    let moved: Vec<usize> =
        (0..before.items()).filter(|&at| before.row(at) != stage1.table.row(at)).collect();
    let items: Vec<String> = moved.iter().map(|&at| ids[at].clone()).collect();
    let old: Vec<String> = moved.iter().map(|&at| joined(before.row(at))).collect();
    let new: Vec<String> = moved.iter().map(|&at| joined(stage1.table.row(at))).collect();
    let path = verb.output.join("migration.csv");
    write(
        &path,
        &[("item", Values::Text(&items)), ("old", Values::Text(&old)), ("new", Values::Text(&new))],
    )?;
    let (was, is) = (audit_table(before, counts), audit_table(&stage1.table, counts));
    if args.json {
        return text::json(&json!({
            "output": verb.output, "moved": moved.len(), "splits": stage1.splits,
            "before": was, "after": is,
        }));
    }
    Ok(format!(
        "{} tokens split, {} of {} items moved; {} different semantic IDs before, {} after\n\n\
         before\n{}\nafter\n{}\nnew semantic IDs and migration.csv in {}\n",
        stage1.splits.len(),
        moved.len(),
        ids.len(),
        was.unique,
        is.unique,
        level_table(&was),
        level_table(&is),
        verb.output.display()
    ))
}
