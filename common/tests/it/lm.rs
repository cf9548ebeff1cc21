//! The language models against transformers and peft, on tiny random weights.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use common::lm::{Architecture, BeamOptions, EarlyStopping, Lm, LmConfig, Pass, save_lora};
use common::nn::{LoraOptions, Parameters};
use common::optim::{AdamW, AdamWOptions, Gradients, Workers};
use common::rng::Seed;
use common::testing::gradients::assert_all_grads;
use common::testing::{assert_close, golden, golden_json, golden_tensors};
use serde_json::Value;

const MODELS: [&str; 5] =
    ["gpt2_tiny", "llama_tiny", "llama_tiny_tied", "qwen2_tiny", "qwen2_tiny_tied"];

fn folder(name: &str) -> PathBuf {
    golden(env!("CARGO_MANIFEST_DIR"), "lm").join(name)
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn rows(t: &Tensor) -> Vec<Vec<u32>> {
    t.to_dtype(DType::U32).unwrap().to_vec2().unwrap()
}

/// Both where the mask is 1, 0 elsewhere.
fn masked(t: &Tensor, mask: &Tensor) -> Vec<f32> {
    let mask = mask.to_dtype(DType::F32).unwrap().unsqueeze(2).unwrap();
    // a NaN at padding must not spoil the comparison
    let bits = mask.broadcast_as(t.shape()).unwrap().flatten_all().unwrap();
    let keep = bits.to_vec1::<f32>().unwrap();
    values(t).into_iter().zip(keep).map(|(v, keep)| if keep == 0.0 { 0.0 } else { v }).collect()
}

/// Each gradient within 1e-3 of its tensor's largest entry.
fn assert_gradients(found: &Gradients, of: &Parameters, expected: &BTreeMap<String, Tensor>) {
    assert_eq!(of.len(), expected.len());
    for ((name, _), found) in of.iter().zip(found.tensors()) {
        let expected = values(&expected[name]);
        let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
        assert_close(&values(found), &expected, 1e-3 * f64::from(largest), 0.0);
    }
}

fn sorted(tensors: std::collections::HashMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    tensors.into_iter().collect()
}

#[test]
fn forward_loss_and_gradients_equal_transformers() {
    for name in MODELS {
        let model = Lm::load(&folder(name)).unwrap();
        let e = golden_tensors(&folder(name).join("expected.safetensors"));
        let (ids, mask) = (&e["input_ids"], &e["attention_mask"]);
        let pass = || Pass { attention_mask: Some(mask), ..Pass::default() };
        let logits = model.logits(ids, pass()).unwrap();
        assert_close(&masked(&logits, mask), &masked(&e["logits"], mask), 1e-4, 0.0);
        let states = model.hidden_states(ids, pass()).unwrap();
        assert_eq!(states.len(), 3);
        for (at, state) in states.iter().enumerate() {
            let expected = &e[&format!("hidden_states.{at}")];
            assert_close(&masked(state, mask), &masked(expected, mask), 1e-4, 0.0);
        }
        let loss = model.loss(ids, &e["labels"], pass()).unwrap();
        assert_close(&[loss.to_scalar::<f32>().unwrap()], &values(&e["loss"]), 1e-4, 0.0);
        let gradients = Gradients::of(&loss, model.parameters()).unwrap();
        let expected = sorted(golden_tensors(&folder(name).join("grads.safetensors")));
        assert_gradients(&gradients, model.parameters(), &expected);
    }
}

#[test]
fn left_padding_with_positions_equals_transformers() {
    for name in MODELS {
        let model = Lm::load(&folder(name)).unwrap();
        let e = golden_tensors(&folder(name).join("expected.safetensors"));
        let mask = &e["left.attention_mask"];
        let positions = rows(&e["left.position_ids"]);
        let pass =
            Pass { attention_mask: Some(mask), positions: Some(&positions), ..Pass::default() };
        let logits = model.logits(&e["left.input_ids"], pass).unwrap();
        assert_close(&masked(&logits, mask), &values(&e["left.logits"]), 1e-4, 0.0);
    }
}

fn prompts(generate: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(generate["prompts"].clone()).unwrap()
}

#[test]
fn greedy_generation_equals_transformers() {
    for name in MODELS {
        let model = Lm::load(&folder(name)).unwrap();
        let generate: Value = golden_json(&folder(name).join("generate.json"));
        for (prompt, expected) in
            prompts(&generate).iter().zip(generate["greedy"].as_array().unwrap())
        {
            let (tokens, log_probs) = model.greedy(prompt, 20, None).unwrap();
            let ids: Vec<u32> = serde_json::from_value(expected["tokens"].clone()).unwrap();
            assert_eq!(tokens, ids, "{name}");
            let p: Vec<f64> = serde_json::from_value(expected["token_logprobs"].clone()).unwrap();
            let found: Vec<f64> = log_probs.into_iter().map(f64::from).collect();
            assert_close(&found, &p, 1e-4, 0.0);
        }
    }
}

#[test]
fn beam_search_equals_transformers() {
    for name in MODELS {
        let model = Lm::load(&folder(name)).unwrap();
        let generate: Value = golden_json(&folder(name).join("generate.json"));
        let prompts = prompts(&generate);
        for case in generate["beam"].as_array().unwrap() {
            let options = BeamOptions {
                beams: case["num_beams"].as_u64().unwrap() as usize,
                max_tokens: case["max_new_tokens"].as_u64().unwrap() as usize,
                length_penalty: case["length_penalty"].as_f64().unwrap(),
                eos: case["eos_token_id"].as_u64().map(|id| id as u32),
                early_stopping: match &case["early_stopping"] {
                    Value::Bool(true) => EarlyStopping::Finished,
                    Value::Bool(false) => EarlyStopping::Heuristic,
                    _ => EarlyStopping::Never,
                },
                ..BeamOptions::default()
            };
            let prompt = &prompts[case["prompt"].as_u64().unwrap() as usize];
            let found = model.beam_search(prompt, &options, None).unwrap();
            let expected = case["hypotheses"].as_array().unwrap();
            assert_eq!(found.len(), expected.len(), "{name} {options:?}");
            for (found, expected) in found.iter().zip(expected) {
                let tokens: Vec<u32> = serde_json::from_value(expected["tokens"].clone()).unwrap();
                assert_eq!(found.tokens, tokens, "{name} {options:?}");
                let sums = [
                    expected["sum_logprob"].as_f64().unwrap(),
                    expected["score"].as_f64().unwrap(),
                ];
                assert_close(&[found.sum_log_prob, found.score], &sums, 1e-4, 0.0);
            }
        }
    }
}

#[test]
fn constrained_beams_stay_in_the_trie_and_equal_the_golden() {
    let golden: Value = golden_json(&folder("beam_constrained/items.json"));
    let model = Lm::load(&folder("llama_tiny")).unwrap();
    let items: Vec<Vec<u32>> = serde_json::from_value(golden["items"].clone()).unwrap();
    let next = |tokens: &[u32]| {
        let mut next: Vec<u32> = items
            .iter()
            .filter(|item| item.starts_with(tokens))
            .filter_map(|item| item.get(tokens.len()).copied())
            .collect();
        next.sort_unstable();
        next.dedup();
        Some(next)
    };
    for case in golden["cases"].as_array().unwrap() {
        let prefix: Vec<u32> = serde_json::from_value(case["prefix"].clone()).unwrap();
        for (key, renormalise) in [("logprob", false), ("logprob_trie", true)] {
            let options = BeamOptions {
                beams: 10,
                max_tokens: 3,
                length_penalty: 0.0,
                renormalise,
                ..BeamOptions::default()
            };
            let found = model.beam_search(&prefix, &options, Some(&next)).unwrap();
            let expected = case[format!("beam10_by_{key}")].as_array().unwrap();
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                let tokens: Vec<u32> = serde_json::from_value(expected["tokens"].clone()).unwrap();
                assert_eq!(found.tokens, tokens);
                assert_close(&[found.sum_log_prob], &[expected[key].as_f64().unwrap()], 1e-4, 0.0);
            }
        }
    }
}

fn lora_options() -> LoraOptions {
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj"].map(str::to_owned).to_vec();
    LoraOptions { rank: 4, alpha: 8.0, targets }
}

#[test]
fn adapters_equal_peft() {
    let mut model = Lm::load(&folder("llama_tiny")).unwrap();
    let e = golden_tensors(&folder("lora").join("expected.safetensors"));
    let ids = &e["input_ids"];
    let base = model.logits(ids, Pass::default()).unwrap();
    assert_close(&values(&base), &values(&e["base_logits"]), 1e-4, 0.0);
    let file = folder("lora").join("adapter_model.safetensors");
    let adapters = model.load_lora(&lora_options(), &file).unwrap();
    let logits = model.logits(ids, Pass::default()).unwrap();
    assert_close(&values(&logits), &values(&e["logits"]), 1e-4, 0.0);
    let loss = model.loss(ids, &e["labels"], Pass::default()).unwrap();
    assert_close(&[loss.to_scalar::<f32>().unwrap()], &values(&e["loss"]), 1e-4, 0.0);
    let gradients = Gradients::of(&loss, &adapters).unwrap();
    let expected = sorted(golden_tensors(&folder("lora").join("grads.safetensors")));
    assert_gradients(&gradients, &adapters, &expected);
    // the frozen weights get none
    assert!(Gradients::of(&loss, model.parameters()).is_err());

    let saved = tempfile::tempdir().unwrap();
    save_lora(saved.path(), &lora_options(), &adapters).unwrap();
    let again = sorted(golden_tensors(&saved.path().join("adapter_model.safetensors")));
    for (name, tensor) in golden_tensors(&file) {
        assert_eq!(values(&again[&name]), values(&tensor));
    }

    model.merge_lora().unwrap();
    let merged = model.logits(ids, Pass::default()).unwrap();
    assert_close(&values(&merged), &values(&e["merged_logits"]), 1e-4, 0.0);
    for (name, expected) in e.iter().filter_map(|(k, t)| Some((k.strip_prefix("merged.")?, t))) {
        let found = model.parameters().get(name).unwrap();
        assert_close(&values(found), &values(expected), 1e-6, 0.0);
    }
    let loss = model.loss(ids, &e["labels"], Pass::default()).unwrap();
    assert_all_grads(&loss, model.parameters());
}

#[test]
fn a_fresh_adapter_changes_nothing_and_unknown_targets_are_refused() {
    for name in ["gpt2_tiny", "qwen2_tiny"] {
        let mut model = Lm::load(&folder(name)).unwrap();
        let ids = Tensor::new(&[[5u32, 9, 2, 40]], &Device::Cpu).unwrap();
        let before = values(&model.logits(&ids, Pass::default()).unwrap());
        let targets = ["c_attn", "c_fc", "q_proj", "down_proj"].map(str::to_owned).to_vec();
        let options = LoraOptions { targets, ..LoraOptions::default() };
        let adapters = model.attach_lora(&options, Seed::new(1)).unwrap();
        assert_eq!(adapters.len(), 8);
        assert_eq!(values(&model.logits(&ids, Pass::default()).unwrap()), before);
        let none = LoraOptions { targets: vec!["z".into()], ..LoraOptions::default() };
        assert!(
            model.attach_lora(&none, Seed::new(1)).unwrap_err().to_string().contains("called z")
        );
    }
}

#[test]
fn a_saved_model_comes_back_bit_for_bit() {
    for name in MODELS {
        let model = Lm::load(&folder(name)).unwrap();
        let saved = tempfile::tempdir().unwrap();
        model.save(saved.path()).unwrap();
        let again = Lm::load(saved.path()).unwrap();
        assert_eq!(again.config(), model.config());
        // the names are those of transformers, no more and no fewer
        let file =
            |folder: &std::path::Path| sorted(golden_tensors(&folder.join("model.safetensors")));
        let (mine, theirs) = (file(saved.path()), file(&folder(name)));
        assert_eq!(mine.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (name, tensor) in theirs {
            assert_eq!(values(&mine[&name]), values(&tensor));
        }
    }
}

#[test]
fn new_models_are_drawn_as_documented_and_learn() {
    for architecture in [Architecture::Gpt2, Architecture::Llama, Architecture::Qwen2] {
        let config = match architecture {
            Architecture::Gpt2 => LmConfig::gpt2(30, 32, 2, 4, 16),
            _ => LmConfig {
                architecture,
                num_key_value_heads: 2,
                ..LmConfig::llama(30, 32, 2, 4, 16)
            },
        };
        let model = Lm::new(&config, Seed::new(4)).unwrap();
        let table = model.parameters().iter().next().unwrap().1;
        let spread = values(&table.sqr().unwrap().mean_all().unwrap().sqrt().unwrap())[0];
        assert!((spread - 0.02).abs() < 0.002, "{spread}");
        let ids: Vec<u32> = (0..64).map(|i| (i * i + i / 16) % 30).collect();
        let ids = Tensor::from_vec(ids, (4, 16), &Device::Cpu).unwrap();
        assert_all_grads(&model.loss(&ids, &ids, Pass::default()).unwrap(), model.parameters());
        let mut optimiser = AdamW::new(model.parameters(), AdamWOptions::default());
        let mut losses = Vec::new();
        for _ in 0..60 {
            let loss = model.loss(&ids, &ids, Pass::default()).unwrap();
            losses.push(loss.to_scalar::<f32>().unwrap());
            let mut gradients = Gradients::of(&loss, model.parameters()).unwrap();
            gradients.clip_global_norm(1.0).unwrap();
            optimiser.step(&gradients, 1e-2).unwrap();
        }
        assert!((losses[0] - 30f32.ln()).abs() < 0.1, "{}", losses[0]);
        assert!(losses[59] < 0.2, "{architecture:?} ends at {}", losses[59]);
    }
}

#[test]
fn a_training_gives_the_same_bytes_on_one_and_two_threads() {
    let ids: Vec<u32> = (0..96).map(|i| (i * i + i / 12) % 30).collect();
    let ids = Tensor::from_vec(ids, (8, 12), &Device::Cpu).unwrap();
    for config in [LmConfig::gpt2(30, 16, 2, 2, 12), LmConfig::llama(30, 16, 2, 2, 12)] {
        let run = |threads: usize| {
            let model = Lm::new(&config, Seed::new(8)).unwrap();
            let workers = Workers::new(threads).unwrap();
            let mut optimiser = AdamW::new(model.parameters(), AdamWOptions::default());
            let mut losses = Vec::new();
            for _ in 0..100 {
                let slice_loss = |slice: usize| {
                    let part = ids.narrow(0, 4 * slice, 4)?;
                    Ok((model.loss(&part, &part, Pass::default())? * 0.5)?)
                };
                let (loss, gradients) =
                    workers.gradients(model.parameters(), 2, slice_loss).unwrap();
                optimiser.step(&gradients, 3e-3).unwrap();
                losses.push(loss);
            }
            let weights = model.parameters().iter().flat_map(|(_, var)| values(var));
            (losses, weights.map(f32::to_bits).collect::<Vec<u32>>())
        };
        let one = run(1);
        assert!(one.0[99] < 0.9 * one.0[0], "{} → {}", one.0[0], one.0[99]);
        let two = run(2);
        assert!(one == two, "threads change a training");
        assert!(two == run(2), "a repetition differs");
    }
}

#[test]
fn the_vocabulary_grows_and_shrinks() {
    let model = Lm::load(&folder("llama_tiny")).unwrap();
    let ids = Tensor::new(&[[5u32, 9, 2, 40]], &Device::Cpu).unwrap();
    let before = model.logits(&ids, Pass::default()).unwrap();
    let grown = model.resize_vocabulary(125, Seed::new(1)).unwrap();
    assert_eq!(grown.config().vocab_size, 125);
    let after = grown.logits(&ids, Pass::default()).unwrap();
    assert_eq!(values(&after.narrow(2, 0, 120).unwrap()), values(&before));
    let back = grown.resize_vocabulary(120, Seed::new(1)).unwrap();
    assert_eq!(values(&back.logits(&ids, Pass::default()).unwrap()), values(&before));
}

#[test]
fn too_long_texts_and_foreign_weights_are_refused() {
    let model = Lm::load(&folder("gpt2_tiny")).unwrap();
    let ids = Tensor::zeros((1, 33), DType::U32, &Device::Cpu).unwrap();
    let error = model.logits(&ids, Pass::default()).unwrap_err();
    assert!(error.to_string().contains("at most 32"), "{error}");
    let tensors = sorted(golden_tensors(&folder("llama_tiny").join("model.safetensors")));
    let mut config = Lm::load(&folder("llama_tiny")).unwrap().config().clone();
    config.num_hidden_layers = 3;
    let error = Lm::from_tensors(&config, tensors.clone()).unwrap_err();
    assert!(error.to_string().contains("model.layers.2"), "{error}");
    config.num_hidden_layers = 2;
    config.intermediate_size = 95;
    let error = Lm::from_tensors(&config, tensors).unwrap_err();
    assert!(error.to_string().contains("expected [95, 48]"), "{error}");
}

#[test]
fn log_probabilities_of_tokens_sum_to_the_loss() {
    let model = Lm::load(&folder("qwen2_tiny")).unwrap();
    let ids = Tensor::new(&[[5u32, 9, 2, 40, 17]], &Device::Cpu).unwrap();
    let log_probs = values(&model.token_log_probs(&ids, Pass::default()).unwrap());
    let loss = model.loss(&ids, &ids, Pass::default()).unwrap().to_scalar::<f32>().unwrap();
    assert_close(&[-log_probs.iter().sum::<f32>() / 4.0], &[loss], 1e-5, 0.0);
}

#[test]
fn given_inputs_take_the_place_of_the_token_embeddings() {
    for config in [LmConfig::gpt2(20, 16, 2, 2, 8), LmConfig::llama(20, 16, 2, 2, 8)] {
        let model = Lm::new(&config, Seed::new(3)).unwrap();
        let ids = Tensor::new(&[[1u32, 2, 3, 4]], &Device::Cpu).unwrap();
        let plain = model.logits(&ids, Pass::default()).unwrap();
        let embedded = model.embedding().forward(&ids).unwrap();
        let other = Tensor::new(&[[7u32, 7, 7, 7]], &Device::Cpu).unwrap();
        let pass = || Pass { inputs: Some(&embedded), ..Pass::default() };
        let given = model.logits(&other, pass()).unwrap();
        assert_eq!(values(&plain), values(&given));
        assert_all_grads(&model.loss(&ids, &ids, pass()).unwrap(), model.parameters());
        let narrow = embedded.narrow(1, 0, 3).unwrap();
        let pass = Pass { inputs: Some(&narrow), ..Pass::default() };
        assert!(model.logits(&ids, pass).unwrap_err().to_string().contains("inputs"));
    }
}
