//! A code book of 200 synthetic items, split where the load piles up.

#![allow(clippy::print_stdout)]

use common::Result;
use common::rng::Seed;
use crab::config::{TokenizerConfig, VectorSource};
use crab::data::synthetic;
use crab::model::rebalance::{RebalanceOptions, rebalance};
use crab::sid::audit;
use crab::vectors::{code_book, item_vectors};

fn main() -> Result<()> {
    let seed = Seed::new(1);
    let data = synthetic(200, 1000, 8, seed);
    let assets = common::assets::Assets::from_env();
    let points = item_vectors(&data, VectorSource::Interactions, &assets, seed)?;
    let config = TokenizerConfig { codes: vec![8, 8, 8], ..TokenizerConfig::default() };
    let book = code_book(points, &config, seed)?;
    let counts = data.counts();
    let options = RebalanceOptions { ratio: 0.25, ..RebalanceOptions::default() };
    let residuals = |level| Some(book.residuals(level));
    let new = rebalance(&book.table, &counts, residuals, &options, seed)?;
    for (name, table) in [("before", &book.table), ("after", &new.table)] {
        let level = &audit(table, &counts).levels[1];
        println!("{name}: Gini {:.3}, largest load {}", level.gini, level.largest);
    }
    Ok(())
}
