//! The engine against transformers' results on tiny models, and against itself.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use common::gguf::Gguf;
use common::llm::engine::{Model, Precision, Session, argmax, trainable};
use common::lm::Pass;
use common::testing::mutate::tiny_gguf;
use common::testing::{assert_close, asset_or_skip, golden, golden_json, golden_tensors};
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

/// Log-probabilities of an option's tokens from a forward pass of its own.
fn log_probs_apart(model: &Model, prefix: &[u32], option: &[u32]) -> Vec<f64> {
    let vocab = model.config().vocab_size;
    let all = [prefix, option].concat();
    let logits = Session::new(model).append_all(&all).unwrap();
    (prefix.len()..all.len())
        .map(|i| {
            let row = &logits[(i - 1) * vocab..i * vocab];
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            f64::from(row[all[i] as usize]) - sum.ln()
        })
        .collect()
}

#[test]
fn options_score_as_separate_forwards() {
    let options: Vec<Vec<u32>> = vec![
        vec![5, 9, 2],
        vec![5, 9, 4],
        vec![7],
        vec![8],
        vec![5, 9, 3, 1, 1],
        (0..20).collect(),
    ];
    for name in TINY {
        for precision in [Precision::F32, Precision::F16, Precision::Quantised] {
            let model = tiny(name, precision);
            let prefix = [3, 1, 4, 1, 5];
            let mut session = Session::new(&model);
            session.append(&prefix).unwrap();
            let scores = session.score_options(&options).unwrap();
            assert_eq!(session.tokens(), prefix);
            for (option, score) in options.iter().zip(&scores) {
                let expected = log_probs_apart(&model, &prefix, option);
                assert_close(&score.token_log_probs, &expected, 1e-4, 0.0);
                assert!((score.log_prob - expected.iter().sum::<f64>()).abs() < 1e-4);
                assert!(
                    (score.mean_log_prob() * option.len() as f64 - score.log_prob).abs() < 1e-9
                );
            }
            // The context can be used on, and scored again.
            let fresh = Session::new(&model).append(&[&prefix[..], &[8]].concat()).unwrap();
            assert_close(&session.append(&[8]).unwrap(), &fresh, 1e-5, 0.0);
            session.truncate(prefix.len());
            for (again, score) in session.score_options(&options).unwrap().iter().zip(&scores) {
                assert_close(&again.token_log_probs, &score.token_log_probs, 1e-5, 0.0);
            }
        }
    }
}

#[test]
fn options_cost_one_prompt_and_their_own_tokens() {
    let model = tiny("llama_tiny", Precision::F32);
    let prompt: Vec<u32> = (0..30).collect();
    let options: Vec<Vec<u32>> = (1..=20).map(|n| (0..1 + n % 4).collect()).collect();
    // Of 1 to 4 tokens, each the beginning of the next: what they share is processed once, and the
    // last token of an option is predicted, not processed.
    let own = 3;
    let mut session = Session::new(&model);
    session.set_prompt(&prompt).unwrap();
    assert_eq!(session.processed(), prompt.len());
    session.score_options(&options).unwrap();
    assert_eq!(session.processed(), prompt.len() + own);
    // The same prompt with other options: only the options.
    session.set_prompt(&prompt).unwrap();
    let apart: Vec<Vec<u32>> = (0..7).map(|n| vec![n, 40, 41]).collect();
    session.score_options(&apart).unwrap();
    let more = 14;
    assert_eq!(session.processed(), prompt.len() + own + more);
    // A prompt that shares its first 25 tokens.
    let other = [&prompt[..25], &[90, 91, 92]].concat();
    session.set_prompt(&other).unwrap();
    assert_eq!(session.processed(), prompt.len() + own + more + 3);
    // In any order: 5, 5 6, 5 6 7, 4, 4 6.
    let before = session.processed();
    session.score_options(&[vec![5, 6, 7, 1], vec![4, 6, 9], vec![5, 6, 8], vec![5, 2]]).unwrap();
    assert_eq!(session.processed(), before + 5);
}

#[test]
fn many_options_score_as_separate_forwards() {
    let options: Vec<Vec<u32>> =
        (0..400u32).map(|n| vec![n % 7, n * 5 % 31, n * 3 % 11, n * 13 % 64, n % 3]).collect();
    let folder = tempfile::tempdir().unwrap();
    // the second with sliding windows
    for architecture in ["llama", "gemma3"] {
        let path = folder.path().join(architecture);
        std::fs::write(&path, tiny_gguf(architecture, 3).layout().bytes).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        let model = Model::from_gguf(&gguf, Precision::F32).unwrap();
        let mut session = Session::new(&model);
        let prefix: Vec<u32> = (0..20).map(|n| n * 7 % 60).collect();
        session.append(&prefix).unwrap();
        let before = session.processed();
        let together = session.score_options(&options).unwrap();
        assert!(session.processed() - before > 512, "one chunk says nothing");
        for (option, score) in options.iter().zip(&together).step_by(13) {
            assert_close(
                &score.token_log_probs,
                &log_probs_apart(&model, &prefix, option),
                1e-4,
                0.0,
            );
        }
    }
}

#[test]
fn clones_and_truncated_sessions_equal_fresh_ones() {
    let model = tiny("llama_tiny", Precision::Quantised);
    let prompt: Vec<u32> = (0..40).map(|i| i * 7 % 120).collect();
    let expected = Session::new(&model).append(&prompt).unwrap();
    let mut session = Session::new(&model);
    session.append(&prompt[..17]).unwrap();
    let mut clone = session.clone();
    session.append(&[1, 2, 3, 4]).unwrap();
    assert_close(&clone.append(&prompt[17..]).unwrap(), &expected, 1e-5, 0.0);
    session.truncate(17);
    assert_eq!(session.len(), 17);
    assert_close(&session.append(&prompt[17..]).unwrap(), &expected, 1e-5, 0.0);

    // Tokens that a step appended are computed again as part of a prompt.
    let mut session = Session::new(&model);
    session.append(&prompt[..20]).unwrap();
    for &token in &prompt[20..30] {
        session.step(token).unwrap();
    }
    assert_close(&session.set_prompt(&prompt).unwrap(), &expected, 1e-5, 0.0);
    assert_close(&session.set_prompt(&prompt).unwrap(), &expected, 1e-5, 0.0);
}

#[test]
fn threads_do_not_change_results() {
    for precision in [Precision::F32, Precision::F16, Precision::Quantised] {
        let model = tiny("qwen2_tiny", precision);
        let prompt: Vec<u32> = (0..50).map(|i| i * 11 % 120).collect();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut session = Session::new(&model);
                let mut out = session.append_all(&prompt).unwrap();
                out.extend(session.step(3).unwrap());
                let scores = session.score_options(&[vec![1, 2, 3], vec![4, 5]]).unwrap();
                (out, scores[0].log_prob, scores[1].log_prob)
            })
        };
        let (one, two) = (run(1), run(2));
        assert_close(&one.0, &two.0, 1e-6, 1e-6);
        assert_close(&[one.1, one.2], &[two.1, two.2], 1e-6, 0.0);
        assert_eq!(two, run(2));
    }
}

#[test]
fn quantised_steps_stay_near_f32() {
    let (exact, quantised) =
        (tiny("llama_tiny", Precision::F32), tiny("llama_tiny", Precision::Quantised));
    assert!(quantised.weight_bytes() < exact.weight_bytes() / 2);
    let (mut a, mut b) = (Session::new(&exact), Session::new(&quantised));
    for token in [3, 14, 15, 92, 65, 35] {
        assert_close(&b.step(token).unwrap(), &a.append(&[token]).unwrap(), 0.25, 0.0);
    }
}

#[test]
fn an_int8_prompt_equals_int8_steps() {
    for precision in [Precision::F32, Precision::Quantised] {
        let model = tiny("llama_tiny", precision);
        let prompt = [3, 14, 15, 92, 65, 35];
        let (mut whole, mut steps) = (Session::new(&model), Session::new(&model));
        let logits = whole.append_int8(&prompt).unwrap();
        let mut last = Vec::new();
        for token in prompt {
            last = steps.step(token).unwrap();
        }
        assert_close(&logits, &last, 1e-4, 0.0);
    }
}

#[test]
fn wrong_use_is_a_clear_error() {
    let model = tiny("llama_tiny", Precision::F32);
    let mut session = Session::new(&model);
    let message = |result: Result<Vec<f32>, common::Error>| result.unwrap_err().to_string();
    assert!(message(session.append(&[])).contains("no tokens"));
    assert!(message(session.append(&[120])).contains("token id 120"));
    assert!(message(session.append(&[1; 65])).contains("at most 64"));
    assert!(session.score_options(&[vec![1]]).unwrap_err().to_string().contains("empty context"));
    session.append(&[1; 62]).unwrap();
    assert!(
        session.score_options(&[vec![1, 2, 3]]).unwrap_err().to_string().contains("at most 64")
    );
    assert!(session.score_options(&[vec![]]).is_err());
    assert_eq!(session.score_options(&[vec![1, 2]]).unwrap().len(), 1);
    session.append(&[1, 1]).unwrap();
    assert!(message(session.step(1)).contains("at most 64"));
    assert_eq!(session.len(), 64);
}

#[test]
fn a_config_that_does_not_fit_the_file_is_refused() {
    let folder = folder("llama_tiny");
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let temp = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("model.safetensors"), temp.path().join("model.safetensors")).unwrap();
    for (from, to, expected) in [
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "model.layers.2."),
        ("\"hidden_size\": 48", "\"hidden_size\": 64", "has shape"),
        ("\"head_dim\": 8", "\"head_dim\": 7", "odd"),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4", "do not divide"),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 0", "key/value heads is 0"),
        ("\"model_type\": \"llama\"", "\"model_type\": \"gpt2\"", "gpt2"),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(temp.path().join("config.json"), text.replace(from, to)).unwrap();
        let error = Model::from_hf(temp.path(), Precision::F32).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_gguf_file_becomes_a_trainable_model_with_the_same_logits() {
    let Some(path) = asset_or_skip("smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf")
    else {
        return;
    };
    let gguf = Gguf::open(&path).unwrap();
    let frozen = Model::from_gguf(&gguf, Precision::F32).unwrap();
    let lm = trainable(&gguf).unwrap();
    let ids = [504_u32, 3575, 282, 4649, 314];
    let expected = Session::new(&frozen).append(&ids).unwrap();
    let batch = Tensor::new(&ids[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let logits = lm.last_logits(&batch, Pass::default()).unwrap();
    let logits = logits.squeeze(0).unwrap().to_vec1::<f32>().unwrap();
    assert_close(&logits, &expected, 2e-3, 1e-4);
    // Logits of an independent float64 forward pass over the same dequantised weights (numpy).
    let reference = [
        (7042, 17.371_26),
        (260, 14.888_589),
        (4528, 13.244_974),
        (2250, 13.009_467),
        (1315, 12.951_514),
    ];
    for (token, logit) in reference {
        assert_close(&[logits[token]], &[logit], 1e-3, 0.0);
    }
}
