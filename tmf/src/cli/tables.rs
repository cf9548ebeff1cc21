//! `fit`, `predict` and `eval` on a user's own tables.

use std::path::PathBuf;

use clap::Args;
use common::checkpoint::Trained;
use common::cli::{CommonArgs, text};
use common::encode::TextEncoder;
use common::optim::Workers;
use common::rng::Seed;
use common::stable_diffusion::Clip;
use common::{Error, Result, metrics, stats};
use serde_json::json;

use super::{assets_of, threads};
use crate::config::{Config, GraphEncoder, InputOptions};
use crate::data::{Dataset, Item, Part, candidates, tables};
use crate::encoders::clip;
use crate::encoders::efficientnet::EfficientNetLite0;
use crate::encoders::image::Picture;
use crate::ensemble::softmax;
use crate::eval::{self, Query, Scorer};
use crate::model::MODALITIES;
use crate::pipeline::{self, Encoded, Prepared};
use crate::store::{Card, Stored};

/// Arguments of `fit`.
#[derive(Debug, Args)]
pub struct FitArgs {
    /// Table of events: user, item, behaviour, time
    pub events: PathBuf,
    /// Table of items: item, title, and where there are any text and image
    #[arg(long)]
    pub items: PathBuf,
    /// Folder to write the model to
    #[arg(long, default_value = "model")]
    pub model: PathBuf,
    /// Learn from all events; by default each user's last two of the target behaviour are left for
    /// eval
    #[arg(long)]
    pub all: bool,
}

/// Arguments of `predict`.
#[derive(Debug, Args)]
pub struct PredictArgs {
    /// Table of events of the users to recommend to
    pub events: PathBuf,
    /// Folder of the model
    #[arg(long, default_value = "model")]
    pub model: PathBuf,
    /// Items per user
    #[arg(long, default_value_t = 10)]
    pub top: usize,
    /// File of recommendations (JSON lines)
    #[arg(long, default_value = "recommendations.jsonl")]
    pub recommendations: PathBuf,
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Table of events; each user's last one of the target behaviour is the answer
    pub events: PathBuf,
    /// Folder of the model
    #[arg(long, default_value = "model")]
    pub model: PathBuf,
}

fn columns(input: &InputOptions) -> tables::Columns<'_> {
    tables::Columns {
        user: &input.user,
        item: &input.item,
        behaviour: &input.behaviour,
        time: &input.time,
        title: &input.title,
        text: &input.text,
        image: &input.image,
        behaviours: &input.behaviours,
        target: &input.target,
    }
}

pub(super) fn fit(fit: &FitArgs, args: &CommonArgs, config: &Config) -> Result<String> {
    let columns = columns(&config.input);
    let data = tables::events(&fit.events, tables::items(&fit.items, &columns)?, &columns)?;
    let assets = assets_of(args);
    let cache = assets.options().cache.join("tmf");
    let workers = Workers::new(threads(args))?;
    let train = if fit.all { data.sequences.clone() } else { data.before(Part::Valid) };
    let kept = Trained::new(&cache.join("trained"));
    let seed = Seed::new(args.seed);
    let used = config.modalities.used();
    let clip = &config.input.clip;
    let image = if used[0] { images(&data, clip, &assets, &workers)? } else { None };
    let written = data.items.iter().any(|item| !item.text.trim().is_empty());
    let text = (used[1] && written)
        .then(|| {
            let encoder = TextEncoder::minilm(&assets)?.with_cache(&cache.join("vectors"))?;
            pipeline::text(&data, &encoder)
        })
        .transpose()?;
    let graph = match (used[2], config.graph_encoder) {
        (false, _) => None,
        (true, GraphEncoder::LightGcn) => {
            let graph = pipeline::graph(&data, &train, config, seed, &kept)?;
            Some((graph.items, graph.present))
        }
        (true, GraphEncoder::Mbht) => {
            let model = pipeline::mbht(&data, &train, config, seed, &kept, &workers)?;
            Some(pipeline::mbht_vectors(&model, &train)?)
        }
    };
    let by_graph = match config.graph_encoder {
        GraphEncoder::LightGcn => "LightGCN per behaviour",
        GraphEncoder::Mbht => "MBHT",
    };
    let by_image =
        if clip.is_empty() { "EfficientNet-Lite0".to_owned() } else { format!("CLIP {clip}") };
    let names = [by_image.as_str(), "MiniLM of the text column", by_graph];
    let encoded = [image, text, graph];
    let there =
        |at: usize| encoded[at].as_ref().is_some_and(|(_, present)| present.contains(&true));
    let encoders = [0, 1, 2].map(|at| there(at).then(|| names[at].to_owned()));
    let pool: Vec<u32> = (0..data.items.len() as u32).collect();
    let prepared = Prepared::new(data, train, pool, encoded, config)?;
    let fitted = pipeline::fit(&prepared, config, seed, seed, &kept, &workers)?;
    let modalities = prepared.switched(config);
    let data = &prepared.data;
    let card = Card {
        config: config.clone(),
        behaviours: data.behaviours.clone(),
        target: data.target,
        items: data.items.iter().map(|item| (item.id.clone(), item.title.clone())).collect(),
        encoders,
        present: [0, 1, 2].map(|at| modalities[at].as_ref().map(|m| m.present.clone())),
        known: fitted.model.items.as_ref().map(|items| items.known.clone()),
        temperature: 1.0,
    };
    let lines = vec![
        vec!["items".to_owned(), data.items.len().to_string()],
        vec!["users".to_owned(), data.users.len().to_string()],
        vec!["behaviours".to_owned(), data.behaviours.join(", ")],
        vec![
            "loss".to_owned(),
            match fitted.fusion.last().or(fitted.warm_up.last()) {
                Some(record) => format!("{:.3}", record.loss),
                None => "not trained".to_owned(),
            },
        ],
        vec!["model".to_owned(), fit.model.display().to_string()],
    ];
    let mut stored = Stored { card, model: fitted.model, prompter: prepared.prompter, modalities };
    if !fit.all {
        stored.calibrate(data, &workers)?;
    }
    stored.save(&fit.model)?;
    if args.json {
        return text::json(&json!({ "model": fit.model, "encoders": stored.card.encoders }));
    }
    Ok(text::table(&["what", "value"], &lines))
}

/// Features of the pictures, by CLIP where a checkpoint is named. Without the opt-in encoder, or for
/// a picture that can't be read, the items have no image, and a warning says so.
fn images(
    data: &Dataset,
    clip: &str,
    assets: &common::assets::Assets,
    workers: &Workers,
) -> Result<Option<Encoded>> {
    if data.items.iter().all(|item| item.image.is_none()) {
        return Ok(None);
    }
    let pictures = || -> Vec<Option<Picture>> {
        let read = |item: &Item| {
            let path = item.image.as_deref()?;
            Picture::read(path)
                .inspect_err(|error| tracing::warn!("item {} has no image: {error}", item.id))
                .ok()
        };
        data.items.iter().map(read).collect()
    };
    if !clip.is_empty() {
        let clip = Clip::open(clip, assets)?;
        return Ok(Some(clip::encode(&clip, &pictures(), workers)?));
    }
    match EfficientNetLite0::from_assets(assets) {
        Ok(encoder) => Ok(Some(encoder.encode(&pictures(), workers)?)),
        Err(error @ Error::Asset { .. }) => {
            tracing::warn!("pictures are left out: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn open(folder: &std::path::Path, events: &std::path::Path) -> Result<(Stored, Dataset)> {
    let stored = Stored::load(folder)?;
    let mut input = stored.card.config.input.clone();
    input.behaviours = stored.card.behaviours.clone();
    let data = tables::events(events, stored.catalogue(), &columns(&input))?;
    Ok((stored, data))
}

pub(super) fn predict(predict: &PredictArgs, args: &CommonArgs) -> Result<String> {
    if predict.top == 0 {
        return Err(Error::usage("--top 0; ask for at least one item"));
    }
    let (stored, data) = open(&predict.model, &predict.events)?;
    let workers = Workers::new(threads(args))?;
    let scorer = stored.scorer();
    let rank = &stored.card.config.rank;
    let most = rank.retrieved.max(predict.top);
    let queries = data
        .sequences
        .iter()
        .enumerate()
        .map(|(user, history)| {
            let ids: Vec<u32> = history.iter().map(|step| step.item).collect();
            let items = stored.retrieve(&ids, most)?;
            Ok(Query { user, history: history.clone(), items, positive: None })
        })
        .collect::<Result<Vec<_>>>()?;
    let score = |scorer: &Scorer<'_>| eval::score(scorer, &queries, false, rank.mean, &workers);
    let all = score(&scorer)?;
    // what each modality adds to an item's log-likelihood: leave one out
    let mut left_out = Vec::new();
    for which in 0..3 {
        let there = stored.modalities[which].is_some();
        let used = [0, 1, 2].map(|at| at != which);
        left_out.push(there.then(|| score(&scorer.with(used))).transpose()?);
    }
    let lines = workers.map(data.users.len(), |user| {
        common::run::check_interrupt()?;
        let Query { history, items, .. } = &queries[user];
        let scores = &all[user];
        let scaled: Vec<f64> = scores.iter().map(|s| s / stored.card.temperature).collect();
        let probabilities = softmax(&scaled);
        let without: Vec<Option<&Vec<f64>>> =
            left_out.iter().map(|scores| scores.as_ref().map(|all| &all[user])).collect();
        let attention = scorer.attention(history)?;
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        let listed: Vec<_> = order
            .into_iter()
            .take(predict.top)
            .map(|at| {
                let contribution: serde_json::Map<String, serde_json::Value> = MODALITIES
                    .iter()
                    .zip(&without)
                    .filter_map(|(name, without)| {
                        let without = (*without)?;
                        Some(((*name).to_owned(), json!(scores[at] - without[at])))
                    })
                    .collect();
                let (id, title) = &stored.card.items[items[at] as usize];
                json!({ "item": id, "title": title, "log_likelihood": scores[at],
                    "probability": probabilities[at], "contribution": contribution })
            })
            .collect();
        let attention = attention.map(|shares| {
            let pairs = MODALITIES.iter().zip(shares);
            pairs
                .map(|(name, share)| ((*name).to_owned(), json!(share)))
                .collect::<serde_json::Map<_, _>>()
        });
        Ok(json!({ "user": data.users[user], "items": listed, "attention": attention }).to_string())
    })?;
    let mut file = lines.join("\n");
    file.push('\n');
    common::files::atomic_write(&predict.recommendations, file.as_bytes())?;
    let path = predict.recommendations.display();
    if args.json {
        return text::json(&json!({ "users": lines.len(), "file": predict.recommendations }));
    }
    Ok(format!("{} users, {path}\n", lines.len()))
}

pub(super) fn eval(eval: &EvalArgs, args: &CommonArgs) -> Result<String> {
    let (stored, data) = open(&eval.model, &eval.events)?;
    let workers = Workers::new(threads(args))?;
    let questions = data.questions(Part::Test);
    if questions.is_empty() {
        let found = "no user with two events of the target behaviour after a first event";
        return Err(Error::data(found, "at least one to measure on").in_file(&eval.events));
    }
    let pool: Vec<u32> = (0..data.items.len() as u32).collect();
    let config = &stored.card.config;
    let seed = Seed::new(args.seed);
    let lists = candidates::draw(&data, &questions, &pool, config.rank.candidates, seed, "test")?;
    let queries: Vec<Query> = questions
        .iter()
        .zip(lists)
        .map(|(question, list)| Query {
            user: question.user,
            history: question.history.clone(),
            items: list.items,
            positive: Some(list.positive),
        })
        .collect();
    let rank = &config.rank;
    let scores = eval::score(&stored.scorer(), &queries, rank.listed, rank.mean, &workers)?;
    let ranks = eval::ranks(&queries, &scores);
    let mut lines = Vec::new();
    for k in [1, 3, 5] {
        let hits = eval::hits(&ranks, k);
        let mut stream = seed.stream(&format!("bootstrap/{k}"));
        let mean = |at: &[usize]| at.iter().map(|&at| hits[at]).sum::<f64>() / at.len() as f64;
        let [low, high] = stats::bootstrap_ci(hits.len(), 1000, &mut stream, mean);
        lines.push((format!("hr@{k}"), metrics::hit_rate_at(&ranks, k), low, high));
    }
    if args.json {
        let values: serde_json::Map<_, _> = lines
            .iter()
            .map(|(name, mean, low, high)| (name.clone(), json!([mean, low, high])))
            .collect();
        return text::json(&json!({ "users": queries.len(), "metrics": values }));
    }
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|(name, mean, low, high)| {
            vec![name.clone(), format!("{mean:.4}"), format!("{low:.4} to {high:.4}")]
        })
        .collect();
    let title = format!("{} users, {} candidates\n", queries.len(), rank.candidates);
    Ok(title + &text::table(&["metric", "value", "95 % interval"], &rows))
}
