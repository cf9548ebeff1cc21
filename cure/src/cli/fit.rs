//! `fit` and `eval`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::Args;
use common::cli::{CommonArgs, Resolved, text};
use common::gguf::Gguf;
use common::llm::engine::trainable;
use common::lm::Lm;
use common::rng::Seed;
use common::run::{RunFolder, RunSpec};
use common::tokenizer::{Special, Tokenizer};
use common::{Error, Result};
use serde_json::json;

use super::{DataArgs, weights_hash, workers};
use crate::config::Config;
use crate::eval::{Part, jsd, kl, l2, predict};
use crate::folder::{self, About};
use crate::model::tokens::with_vocabulary;
use crate::prompt::fingerprint;
use crate::stages::Setting;
use crate::train;

/// Flags of `fit`.
#[derive(Debug, Args)]
pub struct FitArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Folder of the new model
    #[arg(long, value_name = "DIR", default_value = "model")]
    model: PathBuf,
    /// Language model whose layers to start from, under a vocabulary of our own: a folder with
    /// config.json, model.safetensors and tokenizer.json (GPT-2- or Llama-shaped), or a GGUF file
    #[arg(long, value_name = "MODEL")]
    init: Option<PathBuf>,
}

/// The layers of a language model with a row for each token of the vocabulary, made of the pieces of
/// the token's text.
fn on_language_model(path: &Path, setting: &Setting) -> Result<Lm> {
    let (lm, tokenizer) = if path.is_dir() {
        (folder::checkpoint(path)?, Tokenizer::from_json_file(&path.join("tokenizer.json"))?)
    } else {
        let gguf = Gguf::open(path)?;
        (trainable(&gguf)?, gguf.tokenizer()?)
    };
    let words = setting.vocabulary.words.iter();
    let titles: HashMap<String, &str> =
        setting.data.items.iter().map(|item| (format!("item:{}", item.id), &*item.title)).collect();
    let pieces = words.map(|word| {
        let text = match word.as_str() {
            "<pad>" => "-",
            "<bos>" => "user",
            word => titles.get(word).copied().unwrap_or(word),
        };
        tokenizer.encode(&format!(" {text}"), Special::AsText)
    });
    let lm = with_vocabulary(&lm, &pieces.collect::<Result<Vec<_>>>()?)?;
    let tokens = setting.vocabulary.window_tokens(setting.history + 1);
    if tokens > lm.config().max_position_embeddings {
        return Err(Error::usage(format!(
            "prompts of {tokens} tokens, but {} reads {} at most; lower data.history",
            path.display(),
            lm.config().max_position_embeddings
        )));
    }
    Ok(lm)
}

pub(super) fn fit(fit: &FitArgs, args: &CommonArgs, resolved: &Resolved<Config>) -> Result<String> {
    let config = &resolved.config;
    let data = fit.data.read(args, config)?;
    let seed = Seed::new(args.seed);
    let setting = Setting::new(&config.data, data, seed)?;
    let run = RunFolder::open(&RunSpec::new("cure", args, resolved, &[args.seed]))?;
    let outcome = (|| {
        let windows = setting.prompts().of_mask(&setting.mask);
        let lm = match &fit.init {
            Some(path) => on_language_model(path, &setting)?,
            None => Lm::new(&setting.lm_config(&config.model, &config.data), seed)?,
        };
        // a resumed run goes on only with the same data from the same weights
        let start = weights_hash(&lm)?;
        let kept = format!("fit-{}-{start}", fingerprint(&windows));
        let kept = run.path().join("checkpoints").join(kept);
        let checkpoints = common::checkpoint::Checkpoints::open(&kept)?;
        let workers = workers(args)?;
        let (lm, history) =
            train::fit(lm, &windows, &config.fit, seed, &workers, Some(&checkpoints))?;
        folder::save(&fit.model, &lm, &About::new(args.seed, &config.data, &setting))?;
        let users = setting.split.train_users();
        let quality = test_part(&setting, config).quality(&lm, &workers)?;
        let value = json!({
            "model": fit.model,
            "users": users.len(),
            "held_out_users": setting.split.held_out.iter().filter(|&&out| out).count(),
            "windows": windows.len(),
            "parameters": lm.parameters().elements(),
            "loss": history.loss,
            "test": quality,
        });
        text::json(&value)
    })();
    run.close(&outcome)?;
    outcome
}

/// Test records of the users that the model still has training events of.
fn test_part(setting: &Setting, config: &Config) -> Part {
    let users: Vec<usize> = (0..setting.mask.len())
        .filter(|&user| setting.mask[user].iter().any(|&kept| kept))
        .collect();
    let tests = setting.test_records(&users, config.bench.test_records);
    Part::new(setting.prompts().of_windows(&tests))
}

/// Flags of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Folder of the model
    #[arg(long, value_name = "DIR", default_value = "model")]
    model: PathBuf,
    /// Another model of the same data, for example a retrained one
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
}

pub(super) fn eval(
    eval: &EvalArgs,
    args: &CommonArgs,
    resolved: &Resolved<Config>,
) -> Result<String> {
    let config = &resolved.config;
    let (lm, about) = folder::load(&eval.model)?;
    let data = eval.data.read(args, config)?;
    let setting = about.setting(data)?;
    let workers = workers(args)?;
    let test = test_part(&setting, config);
    let quality = test.quality(&lm, &workers)?;
    let held_out = Part::new(setting.held_out());
    let mut value = json!({
        "model": eval.model,
        "forgotten": about.forgotten,
        "records": test.labels.len(),
        "test": quality,
        "never_seen_users": held_out.quality(&lm, &workers)?,
    });
    if let Some(other) = &eval.against {
        let (other, _) = folder::load(other)?;
        let gone: Vec<Vec<bool>> = setting
            .split
            .train_mask(&setting.data)
            .iter()
            .zip(&setting.mask)
            .map(|(all, left)| all.iter().zip(left).map(|(&all, &left)| all && !left).collect())
            .collect();
        let forgotten = Part::new(setting.prompts().of_mask(&gone));
        let part = if forgotten.prompts.is_empty() { &test } else { &forgotten };
        let p = predict(&lm, &part.prompts, &workers)?;
        let q = predict(&other, &part.prompts, &workers)?;
        value["against"] = json!({
            "model": eval.against,
            "on": if forgotten.prompts.is_empty() { "test records" } else { "forgotten events" },
            "jsd": jsd(&p, &q),
            "kl": kl(&q, &p),
            "l2": l2(&p, &q),
        });
    }
    text::json(&value)
}
