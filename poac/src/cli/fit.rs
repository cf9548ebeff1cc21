//! `fit`: trains everything that the other verbs use; what is trained already is kept.

use common::Result;
use common::cli::{CommonArgs, text};
use serde_json::json;

use super::stable::FitArgs;
use crate::bench;
use crate::config::Config;
use crate::store;
use crate::train::History;

pub(super) fn fit(verb: &FitArgs, args: &CommonArgs, config: &Config) -> Result<String> {
    let seeds = args.seed_values(super::seeds(args));
    let (all, pieces) = bench::train(config, &super::assets_of(args), &seeds)?;
    if let Some(folder) = &verb.bundle {
        store::write(folder, pieces)?;
    }
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
    let ends = |history: &History| {
        let tenth = (history.losses.len() / 10).max(1).min(history.losses.len());
        let last = history.losses.len() - tenth;
        (mean(&history.losses[..tenth]), mean(&history.losses[last..]))
    };
    if args.json {
        let list: Vec<_> = all
            .iter()
            .map(|(name, history)| {
                let (first, last) = ends(history);
                json!({ "model": name, "steps": history.losses.len(),
                        "first_loss": first, "last_loss": last })
            })
            .collect();
        return text::json(&list);
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|(name, history)| {
            let (first, last) = ends(history);
            vec![
                name.clone(),
                history.losses.len().to_string(),
                format!("{first:.4}"),
                format!("{last:.4}"),
            ]
        })
        .collect();
    Ok(text::table(&["model", "steps", "loss at first", "at last"], &rows))
}
