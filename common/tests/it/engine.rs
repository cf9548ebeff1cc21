//! The engine against transformers' results on tiny models, and against itself.

use std::path::PathBuf;

use common::llm::engine::{Model, Precision, Session, argmax};
use common::testing::{assert_close, golden, golden_json, golden_tensors};
use serde::Deserialize;

const TINY: [&str; 4] = ["llama_tiny", "llama_tiny_tied", "qwen2_tiny", "qwen2_tiny_tied"];

fn folder(name: &str) -> PathBuf {
    golden(env!("CARGO_MANIFEST_DIR"), "lm").join(name)
}

fn tiny(name: &str, precision: Precision) -> Model {
    Model::from_hf(&folder(name), precision).unwrap()
}

#[test]
fn logits_equal_transformers() {
    for name in TINY {
        let model = tiny(name, Precision::F32);
        let expected = golden_tensors(&folder(name).join("expected.safetensors"));
        let ids = expected["input_ids"].to_vec2::<i64>().unwrap();
        let mask = expected["attention_mask"].to_vec2::<i64>().unwrap();
        let logits = expected["logits"].to_vec3::<f32>().unwrap();
        for ((ids, mask), logits) in ids.iter().zip(&mask).zip(&logits) {
            let length = mask.iter().filter(|&&keep| keep == 1).count();
            let ids: Vec<u32> = ids[..length].iter().map(|&id| id as u32).collect();
            let logits = logits[..length].concat();
            assert_close(&Session::new(&model).append_all(&ids).unwrap(), &logits, 1e-4, 0.0);

            // Token by token, with and without int8 (f32 weights are not quantised).
            let (mut append, mut step) = (Session::new(&model), Session::new(&model));
            for (&id, logits) in ids.iter().zip(logits.chunks(model.config().vocab_size)) {
                assert_close(&append.append(&[id]).unwrap(), logits, 1e-4, 0.0);
                assert_close(&step.step(id).unwrap(), logits, 1e-4, 0.0);
            }
        }
    }
}

#[derive(Deserialize)]
struct Generated {
    prompts: Vec<Vec<u32>>,
    greedy: Vec<Greedy>,
}

#[derive(Deserialize)]
struct Greedy {
    tokens: Vec<u32>,
    token_logprobs: Vec<f64>,
}

#[test]
fn greedy_tokens_equal_transformers() {
    for name in TINY {
        let model = tiny(name, Precision::F32);
        let generated: Generated = golden_json(&folder(name).join("generate.json"));
        assert!(!generated.greedy.is_empty());
        for (prompt, greedy) in generated.prompts.iter().zip(&generated.greedy) {
            let mut session = Session::new(&model);
            let mut logits = session.append(prompt).unwrap();
            let scores = session.score_options(std::slice::from_ref(&greedy.tokens)).unwrap();
            assert_close(&scores[0].token_log_probs, &greedy.token_logprobs, 1e-4, 0.0);
            for &expected in &greedy.tokens {
                assert_eq!(argmax(&logits), expected, "{name}");
                logits = session.step(expected).unwrap();
            }
        }
    }
}
