//! Against diffusers and torch; `tests/golden/make_*.py` made the files.

use std::collections::BTreeMap;

use common::assets::Assets;
use common::testing::{assert_close, golden, golden_json, golden_tensors};
use poac::config::SearchConfig;
use poac::model::QualityHead;
use poac::promptist::Promptist;
use serde_json::Value;

use crate::toy::values;

fn file(name: &str) -> std::path::PathBuf {
    golden(env!("CARGO_MANIFEST_DIR"), name)
}

#[test]
fn the_quality_head_has_laions_form() {
    let e = golden_tensors(&file("aesthetic_head.safetensors"));
    let weights: BTreeMap<_, _> = e
        .iter()
        .filter_map(|(name, t)| Some((name.strip_prefix("small/weights/")?.to_owned(), t.clone())))
        .collect();
    let head = QualityHead::frozen(16, [32, 16, 8, 4, 1], weights).unwrap();
    let features = candle_core::Var::from_tensor(&e["small/features"]).unwrap();
    let score = head.forward(&features).unwrap();
    assert_close(&values(&score), &values(&e["small/score"]), 1e-5, 0.0);
    let store = score.sum_all().unwrap().backward().unwrap();
    let expected = values(&e["small/grad_features"]);
    let largest = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
    let found = values(store.get(&features).unwrap());
    assert_close(&found, &expected, 1e-3 * f64::from(largest), 0.0);
}

#[test]
fn a_prompt_optimiser_finds_the_beams_of_transformers() {
    let folder = file("promptist");
    let spec = folder.to_str().unwrap();
    let model = Promptist::open(spec, None, &Assets::from_env()).unwrap();
    let expected: Vec<Value> = golden_json(&folder.join("expected.json"));
    for case in expected {
        let prompt = case["prompt"].as_str().unwrap();
        let found = model.rewrite(prompt, 8, &SearchConfig::default()).unwrap();
        let texts: Vec<&str> = found.iter().map(|(text, _)| text.as_str()).collect();
        let expected: Vec<&str> =
            case["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        assert_eq!(texts, expected);
        let scores: Vec<f64> = found.iter().map(|(_, score)| *score).collect();
        let expected: Vec<f64> =
            case["scores"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
        assert_close(&scores, &expected, 1e-3, 1e-4);
    }
    let long = "x ".repeat(200);
    let message = model.rewrite(&long, 1, &SearchConfig::default()).unwrap_err().to_string();
    assert!(message.contains("1 to 95"), "{message}");
    // a tokenizer of the wrong size
    let copy = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(folder.join("tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    let first = json["added_tokens"][0].clone();
    let added = json["added_tokens"].as_array_mut().unwrap();
    added.push(Value::Object(
        first
            .as_object()
            .unwrap()
            .clone()
            .into_iter()
            .map(|(key, value)| match key.as_str() {
                "id" => (key, 4_000.into()),
                "content" => (key, "<extra>".into()),
                _ => (key, value),
            })
            .collect(),
    ));
    std::fs::write(copy.path().join("tokenizer.json"), json.to_string()).unwrap();
    let error = Promptist::open(spec, copy.path().to_str(), &Assets::from_env()).unwrap_err();
    assert!(error.to_string().contains("the model has 3"), "{error}");
    assert_eq!(error.exit_code(), 4);
}
