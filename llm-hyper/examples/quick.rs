//! The click model of a new ad from generated past ads, with an LLM or, without one, from its
//! neighbours.
//!
//! `cargo run --release -p llm-hyper --example quick`

#![allow(clippy::print_stdout)]

use common::assets::Assets;
use common::rng::Seed;
use llm_hyper::config::Config;
use llm_hyper::data::{Ad, synth};
use llm_hyper::generate::Generator;
use llm_hyper::model::logit::probability;
use llm_hyper::train::fit_library;
use llm_hyper::writer::Raw;

fn main() -> common::Result<()> {
    let seed = Seed::new(1);
    let size = synth::Size { ads: 60, users: 500, impressions: 600 };
    let data = synth::generate(size, seed)?.data;
    let config = Config::default();
    let past: Vec<usize> = (0..data.ads.len()).collect();
    let library = fit_library(&data, &past, |_| true, &config.library, seed)?;

    let assets = Assets::from_env();
    let generator = Generator::new(&library, &config, &assets)?;
    let ad = Ad { id: "new".into(), title: "best gardening gift".into(), ..Ad::default() };
    let found = generator.retrieve(std::slice::from_ref(&ad))?.remove(0);
    // No LLM here: every weight is a gap, so the demonstrations' mean is served. With one, use
    // `writer::Writer` and `Generator::generate`.
    let raw = Raw { values: vec![None; library.schema.len()], ..Raw::default() };
    let artefact = generator.finish(&ad, &found, &raw, "none")?;

    let mut gardener = vec![0.0; library.schema.len()];
    gardener[library.schema.position("taste:gardening").unwrap_or(0)] = 2.0;
    let p = probability(&artefact.weights, artefact.bias, &gardener);
    println!("p(click) = {p:.3}, mean {:.3}", artefact.target_rate);
    assert!(p > artefact.target_rate);
    Ok(())
}
