//! The learned blend: what it takes from the LLM, its file, its verb; and the sample of the card.

use std::path::Path;

use common::assets::Assets;
use common::rng::Seed;
use common::testing::asset_or_skip;
use common::testing::endpoint::{MockEndpoint, Reply};
use llm_hyper::blend::{Blend, Example};
use llm_hyper::calibrate::{AsCold, Calibration};
use llm_hyper::config::{Config, Mode};
use llm_hyper::data::synth;
use llm_hyper::generate::Generator;
use llm_hyper::model::logit::dot;
use llm_hyper::sources::{NAMES, Sources, sample};
use llm_hyper::train::fit_library;

use crate::cli::{FIT, answer, fails, ok, shared_cache, world};

#[test]
fn a_blend_takes_the_informative_source_and_never_less_than_the_best() {
    let mut stream = Seed::new(9).stream("blend");
    let width = 6;
    let mut examples = Vec::new();
    for _ in 0..20 {
        let truth: Vec<f64> = (0..width).map(|_| stream.normal()).collect();
        let noise: Vec<f64> = (0..width).map(|_| stream.normal()).collect();
        let rows = 300;
        let features = ndarray::Array2::from_shape_fn((rows, width), |_| stream.normal());
        let clicked = features
            .rows()
            .into_iter()
            .map(|x| {
                let z = dot(&truth, &x.to_vec());
                stream.chance(1.0 / (1.0 + (-z).exp()))
            })
            .collect();
        let half = truth.iter().map(|w| 0.5 * w).collect();
        examples.push(Example { sources: vec![noise, half], rate: 0.5, features, clicked });
    }
    let blend = Blend::fit(&examples, None, Seed::new(1)).unwrap();
    assert_eq!(blend.base, 1);
    // The second source has half the true scale.
    assert!((blend.coefficients[1] - 2.0).abs() < 0.3, "{blend:?}");
    assert!(blend.coefficients[0].abs() < 0.1, "{blend:?}");
    assert!(Blend::fit(&examples[..3], None, Seed::new(1)).is_err());
    // Where the second source is right as it is, nothing is gained: the base stays alone.
    for example in &mut examples {
        example.sources[1].iter_mut().for_each(|w| *w *= 2.0);
    }
    let blend = Blend::fit(&examples, None, Seed::new(1)).unwrap();
    assert!(blend.penalty >= 10_000.0, "{blend:?}");
    assert!(blend.coefficients[0].abs() < 0.02, "{blend:?}");
}

#[test]
fn the_llm_gets_a_share_when_it_knows_something_and_none_when_it_guesses() {
    if asset_or_skip("all-minilm-l6-v2", "model.safetensors").is_none() {
        return;
    }
    let size = synth::Size { ads: 40, users: 400, impressions: 300 };
    let truth = synth::generate(size, Seed::new(3)).unwrap();
    let mut config = Config::default();
    config.library.c = vec![0.3];
    config.library.reference_users = 300;
    let all: Vec<usize> = (0..40).collect();
    let seed = Seed::new(1);
    let library = fit_library(&truth.data, &all, |_| true, &config.library, seed).unwrap();
    let assets = Assets::from_env();
    let generator = Generator::new(&library, &config, &assets).unwrap();
    let sources = Sources::new(&library, 5, &assets).unwrap();
    let as_cold = AsCold::new(&generator, &sources, &truth.data, |_| true, seed).unwrap();
    assert_eq!(as_cold.examples.len(), 40);
    assert!(as_cold.examples.iter().all(|ad| ad.sources.len() == NAMES.len()));
    let asked = sample(&library, 30, seed);
    let fit = |answers: &[Vec<f64>]| {
        Calibration::fit(&library, &as_cold, Mode::Json, &asked, answers, seed).unwrap()
    };
    let knowing: Vec<Vec<f64>> = asked.iter().map(|&at| truth.weights[at].clone()).collect();
    let mut stream = Seed::new(8).stream("guesses");
    let guessing: Vec<Vec<f64>> = asked
        .iter()
        .map(|_| (0..library.schema.len()).map(|_| stream.normal()).collect())
        .collect();
    let (knowing, guessing) = (fit(&knowing), fit(&guessing));
    assert!(knowing.with_llm.coefficients[1] > 0.2, "{}", knowing.words());
    assert!(guessing.with_llm.coefficients[1].abs() < 0.03, "{}", guessing.words());
    assert!(knowing.prior_strength >= 1.0);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("calibration.json");
    knowing.write(&path).unwrap();
    assert_eq!(Calibration::read(&path).unwrap(), knowing);
    assert!(knowing.check(&library.schema, Mode::Json).is_ok());
    let error = knowing.check(&library.schema, Mode::Rating).unwrap_err().to_string();
    assert!(error.contains("mode Json") && error.contains("calibrate again"), "{error}");
    let mut other = library.schema.clone();
    other.features[0].mean = 1.0;
    assert_eq!(knowing.check(&other, Mode::Json).unwrap_err().exit_code(), 3);
}

#[test]
fn calibrate_learns_the_blend_that_generate_serves() {
    if asset_or_skip("all-minilm-l6-v2", "model.safetensors").is_none() {
        return;
    }
    let folder = world();
    let path = folder.path();
    let run = |args: &[&str]| shared_cache(path, args);
    run(&FIT);
    let endpoint = MockEndpoint::start(|call| Reply::chat(&answer(call)));
    let spec = endpoint.spec();
    let text = run(&["calibrate", "ads.csv", "log.csv", "--asked", "12", "--llm", &spec]);
    assert!(text.contains("ridge map") && text.contains("12 of them with answers"), "{text}");
    let blend = ["generate", "new.csv", "--llm", &spec, "--calibration", "calibration.json"];
    let text = run(&blend);
    assert!(text.contains("0 written by the LLM, 4 blends"), "{text}");
    assert!(text.contains("reasons state the sign of their weight"), "{text}");
    let text = run(&["eval", "new.csv", "new_log.csv", "--json", "--set", "bench.resamples=20"]);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let auc = |method: &str| {
        let row = rows.iter().find(|r| r["method"] == method && r["metric"] == "auc per ad");
        row.unwrap()["value"].as_f64().unwrap()
    };
    assert!(auc("artefacts") > auc("LR_cold (median)"), "{rows:?}");
    assert!(auc("artefacts") > auc("kNN weights") - 0.02, "{rows:?}");
    run(&["warm", "new.csv", "new_log.csv", "--calibration", "calibration.json"]);

    // A calibration of other features is refused.
    let schema = std::fs::read_to_string(path.join("schema.toml")).unwrap();
    std::fs::write(path.join("schema.toml"), schema.replace("std = 1.0", "std = 2.0")).unwrap();
    ok(path, &FIT);
    fails(path, &blend, 3, &["calibration.json", "calibrate again"]);
}

#[test]
fn the_card_goes_from_the_sample_to_scores_in_three_commands() {
    if asset_or_skip("smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf").is_none() {
        return;
    }
    let krate = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::create_dir(path.join("sample")).unwrap();
    for file in std::fs::read_dir(krate.join("sample")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), path.join("sample").join(file.file_name())).unwrap();
    }
    let card = std::fs::read_to_string(krate.join("README.md")).unwrap();
    let commands: Vec<Vec<&str>> = card
        .lines()
        .filter(|line| line.starts_with("llm-hyper ") && line.contains("sample/"))
        .map(|line| line.split('#').next().unwrap_or("").split_whitespace().skip(1).collect())
        .collect();
    assert_eq!(commands.len(), 3, "{commands:?}");
    let texts: Vec<String> = commands.iter().map(|words| shared_cache(path, words)).collect();
    assert!(texts[0].contains("10 ads with trained weights"), "{texts:?}");
    assert!(texts[1].contains("3 written by the LLM"), "{texts:?}");
    assert!(texts[2].contains("24 scores of 12 users and 3 ads"), "{texts:?}");
}
