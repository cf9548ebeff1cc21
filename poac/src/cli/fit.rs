//! `fit`: trains everything that the other verbs use; what is trained already is kept.

use common::Result;
use common::cli::{CommonArgs, text};
use common::rng::Seed;
use serde_json::json;

use crate::config::Config;
use crate::studio::Tuning;
use crate::train::History;

pub(super) fn fit(args: &CommonArgs, config: &Config) -> Result<String> {
    let seed = Seed::new(args.seed);
    let base = super::base_of(args, config)?;
    let (_, plm) = base.plm(seed, false)?;
    let models = base.image_models(seed)?;
    let (_, refl) = base.tuned(&models, Tuning::Reward, seed)?;
    let mut all: Vec<(String, &History)> = vec![("language model".into(), &plm)];
    all.extend(models.histories.iter().map(|(name, history)| (name.clone(), history)));
    all.extend(refl.iter().enumerate().map(|(at, h)| (format!("ReFL, stage {}", at + 1), h)));
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
