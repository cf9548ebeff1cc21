//! `label`: ask labelers about a product file.

use std::path::PathBuf;

use common::cli::{CommonArgs, Resolved};
use common::{Error, Result};
use serde_json::json;

use crate::config::Config;
use crate::data::{Schema, read_products};
use crate::label;
use crate::labelers::{Builder, build};
use common::cli::text;

/// Flags of `label`.
#[derive(Debug, clap::Args)]
pub struct LabelArgs {
    /// Product file (.csv, .tsv, .jsonl, .parquet) with id, title and description
    pub products: PathBuf,
    /// Attribute schema (.toml or .json): attributes, their closed label lists, synonyms
    #[arg(long, value_name = "FILE")]
    pub attributes: PathBuf,
    /// Vote file to write (.csv, .tsv, .jsonl, .parquet)
    #[arg(long, value_name = "FILE", default_value = "votes.csv")]
    pub votes: PathBuf,
}

pub(super) fn label(
    label: &LabelArgs,
    args: &CommonArgs,
    resolved: &Resolved<Config>,
) -> Result<String> {
    let config = &resolved.config;
    // The name of the output must be right before money is spent on answers.
    common::data::Format::of(&label.votes)?;
    let schema = Schema::read(&label.attributes)?;
    for attribute in &schema.attributes {
        for name in &attribute.labelers {
            if !config.labelers.iter().any(|labeler| labeler.name() == name) {
                return Err(Error::usage(format!(
                    "attribute {} asks labeler {name:?}, which the config does not define",
                    attribute.name
                )));
            }
        }
    }
    let products = read_products(&label.products, &config.input)?;
    let mut builder = Builder::new(super::assets_of(args), super::llm_options(args), &config.label);
    let labelers = build(&mut builder, config, &schema, &products, args.seed)?;
    let answers = label::label(&products, &schema, &labelers, &config.label)?;
    let votes = label::write_votes(&label.votes, &products, &schema, &answers)?;
    if args.json {
        return text::json(&json!({
            "votes": label.votes,
            "rows": votes,
            "products": products.len(),
            "workers": answers.workers.iter().zip(&answers.counts).map(|(name, counts)| {
                json!({ "name": name, "counts": counts })
            }).collect::<Vec<_>>(),
        }));
    }
    let header = ["labeler", "asked", "answered", "abstained", "unusable", "failed"];
    let rows: Vec<Vec<String>> = answers
        .workers
        .iter()
        .zip(&answers.counts)
        .map(|(name, c)| {
            let numbers = [c.asked, c.answered, c.abstained, c.unusable, c.failed];
            std::iter::once(name.clone()).chain(numbers.map(|n| n.to_string())).collect()
        })
        .collect();
    Ok(format!(
        "{votes} votes on {} products in {}\n\n{}",
        products.len(),
        label.votes.display(),
        text::table(&header, &rows)
    ))
}
