//! `fit`, `predict`, `eval`: a recommender of your own data.

use std::path::PathBuf;

use common::assets::Assets;
use common::checkpoint::Trained;
use common::cli::{CommonArgs, text};
use common::data::{Values, write};
use common::optim::Workers;
use common::recommend::Markov;
use common::rng::Seed;
use common::{Error, Result};
use serde_json::json;

use crate::baselines;
use crate::config::Config;
use crate::data::{self, Dataset};
use crate::decode::{DecodeOptions, decode};
use crate::eval::{Groups, Scores, evaluate};
use crate::model::generator::Generator;
use crate::saved::Saved;
use crate::sid::SidTable;
use crate::tokenizer::Codebook;
use crate::train::{self, EpochRecord, Task};
use crate::vectors::{code_book, item_vectors};

/// Flags of `fit`.
#[derive(Debug, clap::Args)]
pub struct FitArgs {
    /// Interactions (.csv, .tsv, .jsonl, .parquet) with columns user, item, time
    pub events: PathBuf,
    /// Items with columns item, text; without it, items are compared by who interacted with them
    #[arg(long, value_name = "FILE")]
    pub items: Option<PathBuf>,
    /// Semantic IDs of another system as `index.json`, used instead of a tokenizer
    #[arg(long, value_name = "FILE")]
    pub sids: Option<PathBuf>,
    /// Folder to write the recommender to; a killed fit with the same flags goes on from there
    #[arg(long, value_name = "DIR", default_value = "recommender")]
    pub model: PathBuf,
}

/// Flags of `predict`.
#[derive(Debug, clap::Args)]
pub struct PredictArgs {
    /// Interactions with columns user, item, time
    pub events: PathBuf,
    /// Folder that `fit` or `rebalance` wrote
    #[arg(long, value_name = "DIR", default_value = "recommender")]
    pub model: PathBuf,
    /// Recommendations to write (.csv, .tsv, .jsonl, .parquet)
    #[arg(long, value_name = "FILE", default_value = "recommendations.csv")]
    pub recommendations: PathBuf,
    /// Items per user
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
}

/// Flags of `eval`.
#[derive(Debug, clap::Args)]
pub struct EvalArgs {
    /// The interactions that the recommender was fitted on; each user's last item is the target
    pub events: PathBuf,
    /// Folder that `fit` or `rebalance` wrote
    #[arg(long, value_name = "DIR", default_value = "recommender")]
    pub model: PathBuf,
}

/// User events for a fitted recommender, with the users' names in the order of the sequences.
pub(super) fn events_of(saved: &Saved, path: &std::path::Path) -> Result<Dataset> {
    let data = data::read_events(path, None, saved.repeats)?;
    saved.renumber(data).map_err(|error| error.in_file(path))
}

pub(super) fn fit(
    fit: &FitArgs,
    args: &CommonArgs,
    config: &Config,
    assets: &Assets,
    threads: usize,
) -> Result<String> {
    let data = data::read_events(&fit.events, fit.items.as_deref(), config.repeats)?;
    let seed = Seed::new(args.seed);
    let source = match fit.items {
        Some(_) => config.tokenizer.vectors,
        None => crate::config::VectorSource::Interactions,
    };
    let points = item_vectors(&data, source, assets, seed)?;
    let book = match &fit.sids {
        Some(path) => Codebook::around(SidTable::read_for(path, &data.ids)?, points)?,
        None => code_book(points, &config.tokenizer, seed)?,
    };
    let table = book.distinct(config.tokenizer.collisions, &data.counts());
    let workers = Workers::new(threads)?;
    let task =
        Task { sequences: &data.train, table: &table, valid: &data.valid, item_weights: None };
    // every epoch leaves a checkpoint, so that a killed run loses little
    let options = train::TrainOptions { checkpoint_every: 1, ..config.train };
    let key = json!({
        "tokenizer": config.tokenizer, "generator": config.generator, "train": options,
        "seed": seed, "data": data.fingerprint(), "table": table.fingerprint(),
    });
    let (tensors, history): (_, Vec<EpochRecord>) = Trained::new(&fit.model.join("training"))
        .get_or_train("generator", &key, |work| {
            let model = Generator::new(table.sizes(), config.generator, seed)?;
            let (model, history) = train::fit(task, model, &options, &workers, seed, Some(work))?;
            Ok((model.parameters().tensors(), history))
        })?;
    let model = Generator::from_tensors(config.generator, tensors)?;
    let counts = data.counts();
    let saved =
        Saved { ids: data.ids.clone(), table, book, model, counts, repeats: config.repeats };
    saved.write(&fit.model)?;
    let best = history.iter().filter_map(|r| r.validation).fold(f64::NAN, f64::max);
    let last = history.last().map_or(f64::NAN, |record| record.loss);
    if args.json {
        return text::json(&json!({
            "model": fit.model, "items": data.items(), "users": data.train.len(),
            "unique_sids": saved.book.table.unique(), "epochs": history.len(), "loss": last,
            "validation_ndcg@10": if best.is_finite() { Some(best) } else { None },
        }));
    }
    Ok(format!(
        "{} items in {} semantic IDs, {} users; {} epochs, loss {last:.3}, validation ndcg@10 \
         {best:.4}\nrecommender in {}\n",
        data.items(),
        saved.book.table.unique(),
        data.train.len(),
        history.len(),
        fit.model.display()
    ))
}

pub(super) fn predict(
    predict: &PredictArgs,
    args: &CommonArgs,
    config: &Config,
    threads: usize,
) -> Result<String> {
    common::data::Format::of(&predict.recommendations)?;
    if predict.top == 0 {
        return Err(Error::usage("--top 0: expected at least 1"));
    }
    let saved = Saved::read(&predict.model)?;
    let (names, data) = users_of(&saved, &predict.events)?;
    let histories: Vec<&[u32]> = data.iter().map(Vec::as_slice).collect();
    let beams = config.beams.max(predict.top);
    // seen items take up beams
    let beams = if saved.repeats { beams } else { 4 * beams };
    let options = DecodeOptions { beams, renormalise: true };
    let ranked = decode(&saved.model, &saved.table, &histories, options, &Workers::new(threads)?)?;
    let (mut users, mut ranks, mut items, mut logs) = (vec![], vec![], vec![], vec![]);
    for ((user, history), found) in names.iter().zip(&data).zip(ranked) {
        let fresh = found.into_iter().filter(|(item, _)| saved.repeats || !history.contains(item));
        for (rank, (item, log)) in fresh.take(predict.top).enumerate() {
            users.push(user.clone());
            ranks.push(rank as i64 + 1);
            items.push(saved.ids[item as usize].clone());
            logs.push(log);
        }
    }
    write(
        &predict.recommendations,
        &[
            ("user", Values::Text(&users)),
            ("rank", Values::Integer(&ranks)),
            ("item", Values::Text(&items)),
            ("log_probability", Values::Real(&logs)),
        ],
    )?;
    let summary = json!({
        "recommendations": predict.recommendations, "users": names.len(), "rows": users.len(),
    });
    if args.json {
        return text::json(&summary);
    }
    Ok(format!(
        "{} recommendations for {} users in {}\n",
        users.len(),
        names.len(),
        predict.recommendations.display()
    ))
}

/// Users and their whole histories.
fn users_of(saved: &Saved, path: &std::path::Path) -> Result<(Vec<String>, Vec<Vec<u32>>)> {
    let mut data = events_of(saved, path)?;
    for case in &data.test {
        if let Some(user) = case.user {
            data.train[user] = case.history.clone();
            data.train[user].push(case.target);
        }
    }
    Ok((data::user_names(path)?, data.train))
}

pub(super) fn eval(
    eval: &EvalArgs,
    args: &CommonArgs,
    config: &Config,
    threads: usize,
) -> Result<String> {
    let saved = Saved::read(&eval.model)?;
    let data = events_of(&saved, &eval.events)?;
    if data.test.is_empty() {
        return Err(Error::data(
            "no user with three events",
            "users whose last item can be held out",
        )
        .in_file(&eval.events));
    }
    let counts = data.counts();
    let groups = Groups::equal_count(&counts, 5);
    let score = |lists: &crate::eval::Lists| evaluate(&data.test, lists, &groups, data.items());
    let histories: Vec<&[u32]> = data.test.iter().map(|case| case.history.as_slice()).collect();
    let beams = if saved.repeats { config.beams } else { 4 * config.beams };
    let options = DecodeOptions { beams: beams.max(10), renormalise: true };
    let ranked = decode(&saved.model, &saved.table, &histories, options, &Workers::new(threads)?)?;
    let markov = Markov::fit(&data.train, data.items())?;
    let rows: Vec<(&str, Scores)> = vec![
        ("generator", score(&baselines::generated(&data, &data.test, &ranked))),
        ("popularity", score(&baselines::popularity(&data, &data.test)?)),
        ("Markov", score(&baselines::markov(&data, &data.test, &markov))),
    ];
    if args.json {
        let map: serde_json::Map<String, serde_json::Value> =
            rows.iter().map(|(name, scores)| ((*name).to_owned(), json!(scores))).collect();
        return text::json(&map);
    }
    let header: Vec<&str> = std::iter::once("method")
        .chain(rows[0].1.named().into_iter().map(|(name, _, _)| name))
        .collect();
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|(name, scores)| {
            let values = scores.named().into_iter().map(|(_, value, _)| format!("{value:.4}"));
            std::iter::once((*name).to_owned()).chain(values).collect()
        })
        .collect();
    Ok(text::table(&header, &cells))
}
