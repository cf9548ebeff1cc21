//! Tokenizers of the real models against goldens made without this code (see
//! `tests/golden/tokenizer/make_golden.py`).

#![allow(clippy::unwrap_used)]

use common::gguf::Gguf;
use common::testing::mutate::tiny_tokenizer_json;
use common::testing::{asset_or_skip, golden, golden_json};
use common::tokenizer::{Special, Tokenizer};
use serde::Deserialize;
use std::time::{Duration, Instant};

#[derive(Deserialize)]
struct Row {
    text: String,
    parse: bool,
    ids: Vec<u32>,
    /// What llama.cpp gives, where that differs.
    other: Option<Vec<u32>>,
}

fn smollm2() -> Option<Tokenizer> {
    open("smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf")
}

fn qwen2() -> Option<Tokenizer> {
    open("qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
}

fn gemma3() -> Option<Tokenizer> {
    open("gemma-3-270m", "gemma-3-270m-q4_k_m.gguf")
}

fn open(id: &str, file: &str) -> Option<Tokenizer> {
    Some(Gguf::open(&asset_or_skip(id, file)?).unwrap().tokenizer().unwrap())
}

/// All rows of a golden; text that was not parsed holds no special token and comes back whole,
/// unless the tokenizer normalises it. Returns on how many rows llama.cpp differs.
fn agrees(tokenizer: &Tokenizer, name: &str, whole: impl Fn(&Row) -> bool) -> usize {
    let path = golden(env!("CARGO_MANIFEST_DIR"), "tokenizer").join(format!("{name}.json"));
    let rows: Vec<Row> = golden_json(&path);
    assert!(rows.len() >= 400, "{} rows", rows.len());
    for row in &rows {
        let Row { text, parse, ids, .. } = row;
        let special = if *parse { Special::Parse } else { Special::AsText };
        let found = tokenizer.encode(text, special).unwrap();
        assert_eq!(&found, ids, "{name} {special:?} {text:?}");
        if !parse {
            assert!(!found.iter().any(|&id| tokenizer.is_special(id)), "{text:?}");
            let decoded = tokenizer.decode(&found).unwrap();
            assert!(&decoded == text || !whole(row), "{text:?} {decoded:?}");
        }
    }
    rows.iter().filter(|row| row.other.is_some()).count()
}

#[test]
fn smollm2_agrees_with_tokenizers_and_llama_cpp() {
    let Some(tokenizer) = smollm2() else { return };
    assert_eq!(agrees(&tokenizer, "smollm2", |_| true), 0);
    assert_eq!(tokenizer.id_of("<|im_end|>"), Some(2));
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.adds_bos()), (Some(1), Some(2), false));
    assert_eq!(tokenizer.vocabulary_size(), 49_152);
}

#[test]
fn qwen2_agrees_with_tokenizers() {
    let Some(tokenizer) = qwen2() else { return };
    // llama.cpp does not compose characters, and takes "</s>" for a special token.
    assert_eq!(agrees(&tokenizer, "qwen2", |row| row.other.is_none()), 31);
}

#[test]
fn gemma3_agrees_with_llama_cpp() {
    let Some(tokenizer) = gemma3() else { return };
    // llama.cpp takes the HTML tag </s> for an end of text.
    // U+2581 is the vocabulary's sign for a space, so it comes back as one.
    assert_eq!(agrees(&tokenizer, "gemma3", |row| !row.text.contains('\u{2581}')), 1);
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.token_bytes(238 + 0x41), Some(&b"A"[..]));
}

#[test]
fn long_runs_take_linear_time() {
    let texts = ["a".repeat(200_000), " ".repeat(200_000), "ab 1\n".repeat(40_000)];
    for tokenizer in [smollm2(), qwen2(), gemma3()].into_iter().flatten() {
        for text in &texts {
            let start = Instant::now();
            let ids = tokenizer.encode(text, Special::AsText).unwrap();
            assert_eq!(&tokenizer.decode(&ids).unwrap(), text);
            // 0.3 s at worst on the machine this was written on.
            assert!(start.elapsed() < Duration::from_secs(10), "{tokenizer:?}");
        }
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_named() {
    let Some(tokenizer) = smollm2() else { return };
    let error = tokenizer.decode(&[5, 49_152]).unwrap_err().to_string();
    assert!(error.contains("the token id 49152") && error.contains("below 49152"), "{error}");
    assert_eq!(tokenizer.token_bytes(49_152), None);
}

fn json(change: impl FnOnce(&mut serde_json::Value)) -> common::Result<Tokenizer> {
    let mut json = tiny_tokenizer_json();
    change(&mut json);
    Tokenizer::from_json(json.to_string().as_bytes(), "tokenizer.json".as_ref())
}

#[test]
fn tokenizer_json_parses_or_keeps_special_tokens() {
    let tokenizer = json(|_| {}).unwrap();
    let end = tokenizer.id_of("<|end|>").unwrap();
    let text = "the<|end|>";
    assert_eq!(tokenizer.encode(text, Special::Parse).unwrap().last(), Some(&end));
    let plain = tokenizer.encode(text, Special::AsText).unwrap();
    assert!(!plain.contains(&end));
    assert_eq!(tokenizer.decode(&plain).unwrap(), text);
    assert!(!tokenizer.adds_bos());
    let tokenizer = tokenizer.with_eos("<|end|>").unwrap();
    assert_eq!(tokenizer.eos(), Some(end));
    assert!(tokenizer.with_bos("<|begin|>").is_err());
}

#[test]
fn tokenizer_json_is_never_padded_or_cut() {
    let tokenizer = json(|json| {
        json["padding"]["strategy"]["Fixed"] = (1u64 << 40).into();
        json["truncation"]["max_length"] = 1.into();
    })
    .unwrap();
    assert_eq!(tokenizer.encode("the the", Special::Parse).unwrap().len(), 2);
}

#[test]
fn malformed_tokenizer_json_is_an_error() {
    let refused = |change: &dyn Fn(&mut serde_json::Value), expected: &str| {
        let error = json(change).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains(expected), "{error}");
    };
    // A merge whose whole is longer than the longest token: tokenizers panics.
    let merge = serde_json::json!([["Ġthe", "Ġthe"]]);
    refused(&|json| json["model"]["merges"] = merge.clone(), "malformed in a way");
    refused(&|json| json["model"]["continuing_subword_prefix"] = "é".into(), "continuing_subword");
    refused(&|json| json["model"]["vocab"]["the"] = u32::MAX.into(), "its highest token id");
    refused(&|json| *json = serde_json::json!([1]), "is not a JSON object");
    let deep = "[".repeat(100_000);
    let error = Tokenizer::from_json(deep.as_bytes(), "t".as_ref()).unwrap_err().to_string();
    assert!(error.contains("recursion limit"), "{error}");
}
