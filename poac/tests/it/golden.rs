//! Against diffusers and torch; `tests/golden/make_*.py` made the files.

use std::collections::BTreeMap;

use common::assets::Assets;
use common::testing::{assert_close, golden, golden_json, golden_tensors};
use poac::config::SearchConfig;
use poac::image_reward::ImageReward;
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
fn image_reward_equals_blip_and_pictures_get_its_gradient() {
    let folder = file("image_reward");
    let spec = folder.to_str().unwrap();
    let model = ImageReward::open(spec, &Assets::from_env()).unwrap();
    let prompts: Vec<String> =
        serde_json::from_value(golden_json(&folder.join("prompts.json"))).unwrap();
    let e = golden_tensors(&folder.join("expected.safetensors"));
    let tokens = model.tokens(&prompts.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let ids: Vec<f32> = tokens
        .ids
        .flatten_all()
        .unwrap()
        .to_vec1::<u32>()
        .unwrap()
        .iter()
        .map(|&id| id as f32)
        .collect();
    assert_eq!(ids, values(&e["ids"]));
    let pictures = candle_core::Var::from_tensor(&e["pictures"]).unwrap();
    let reward = model.reward(&pictures, &tokens).unwrap();
    assert_close(&values(&reward), &values(&e["reward"]), 1e-4, 1e-4);
    let store = reward.sum_all().unwrap().backward().unwrap();
    let expected = values(&e["grad_pictures"]);
    let largest = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
    assert!(largest > 1e-3);
    let found = values(store.get(&pictures).unwrap());
    assert_close(&found, &expected, 1e-3 * f64::from(largest), 0.0);

    // wrong files are named
    let copy = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(copy.path().join(name), bytes).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        put(name, &std::fs::read(folder.join(name)).unwrap());
    }
    let error = || {
        let found = ImageReward::open(copy.path().to_str().unwrap(), &Assets::from_env());
        let error = found.unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
        error.to_string()
    };
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    put("config.json", config.replace("\"vision_heads\": 3", "\"vision_heads\": 5").as_bytes());
    assert!(error().contains("5 vision heads do not divide the width 24"));
    put("config.json", config.replace("\"hidden_size\": 16", "\"hidden_size\": 18").as_bytes());
    assert!(error().contains("expected [12, 18]"));
    put("config.json", b"{");
    assert!(error().contains("config.json"));
    put("config.json", config.replace("\"vocab_size\": ", "\"vocab_size\": -").as_bytes());
    assert!(error().contains("config.json"));
    std::fs::remove_file(copy.path().join("config.json")).unwrap();
    assert!(error().contains("shape"));
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
    // diverse beams
    let search = SearchConfig { beams: 4, groups: 4, ..SearchConfig::default() };
    let diverse = model.rewrite("two doves", 4, &search).unwrap();
    let first: std::collections::BTreeSet<&str> =
        diverse.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!(first.len(), 4, "{diverse:?}");
    // a file cut short
    let copy = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let mut bytes = std::fs::read(folder.join(name)).unwrap();
        if name == "model.safetensors" {
            bytes.truncate(bytes.len() / 2);
        }
        std::fs::write(copy.path().join(name), bytes).unwrap();
    }
    let error = Promptist::open(copy.path().to_str().unwrap(), None, &Assets::from_env());
    let error = error.unwrap_err();
    assert!(error.to_string().contains("model.safetensors") && error.exit_code() == 4, "{error}");
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
