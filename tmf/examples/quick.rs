//! The crate as a library: a synthetic catalogue whose pictures tell what is bought.

#![allow(clippy::print_stdout)]

use common::checkpoint::Trained;
use common::optim::Workers;
use common::rng::Seed;
use tmf::bench::synthetic::{prepare, queries, sized};
use tmf::config::Config;
use tmf::data::synthetic::{Signal, Sizes, generate};
use tmf::eval::{self, Scorer};
use tmf::pipeline;

fn main() -> common::Result<()> {
    common::runtime::init(None);
    let (seed, config) = (Seed::new(0), sized(&Config::cpu()));
    let catalogue = generate(Signal::Image, Sizes::default(), seed);
    let prepared = prepare(&catalogue, &config, seed)?;
    let (kept, workers) = (Trained::new(&std::env::temp_dir().join("tmf")), Workers::new(2)?);
    let fitted = pipeline::fit(&prepared, &config, seed, seed, &kept, &workers)?;
    let (modalities, asked) = (prepared.switched(&config), queries(&catalogue));
    for used in [[true, true, true], [false, true, true]] {
        let scorer = Scorer::new(&fitted.model, &prepared.prompter, &modalities).with(used);
        let scores = eval::score(&scorer, &asked, false, false, &workers)?;
        let hits = eval::hits(&eval::ranks(&asked, &scores), 1);
        let share = hits.iter().sum::<f64>() / hits.len() as f64;
        println!("image, text, graph = {used:?}: hit rate at 1 = {share:.3}");
    }
    Ok(())
}
