//! Tiny JSON files of a model folder, and mutations of JSON values.

use super::interesting;
use crate::rng::Stream;
use serde_json::{Map, Value, json};

/// The config.json of [`super::tiny_safetensors`].
pub fn tiny_config_json() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "float32"
    })
}

/// A tokenizer.json with a byte-level BPE model, a special token, truncation and padding.
pub fn tiny_tokenizer_json() -> Value {
    let mut vocabulary = Map::new();
    let letters = (b'!'..=b'~').map(|byte| char::from(byte).to_string());
    let merged = ["Ġ", "th", "the", "Ġthe"].map(String::from);
    for (id, token) in letters.chain(merged).enumerate() {
        vocabulary.insert(token, json!(id));
    }
    let special = vocabulary.len();
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 32, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
        "added_tokens": [{"id": special, "content": "<|end|>", "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false, "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"}, {"type": "Lowercase"},
            {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\d{1,3}| ?\\p{L}+"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [special], "tokens": ["<|end|>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "ignore_merges": false, "vocab": vocabulary,
                  "merges": [["t", "h"], ["th", "e"], ["Ġ", "the"]]}
    })
}

/// Changes one to three random nodes of `json`: numbers to edges of types, texts, types, missing
/// and repeated elements, deep nesting.
pub fn mutate_json(json: &mut Value, stream: &mut Stream) {
    for _ in 0..=stream.below(3) {
        // Small files have few nodes near the root, where most fields of interest are.
        let depth = 1 + stream.below(6);
        mutate_node(json, depth, stream);
    }
}

fn mutate_node(json: &mut Value, depth: usize, stream: &mut Stream) {
    match json {
        Value::Object(fields) if depth > 0 && !fields.is_empty() => {
            let index = stream.below(fields.len());
            let key = fields.keys().nth(index).cloned().unwrap_or_default();
            match stream.below(12) {
                0 => drop(fields.remove(&key)),
                1 => {
                    let value = fields.remove(&key).unwrap_or_default();
                    fields.insert(format!("{key}x"), value);
                }
                _ => {
                    if let Some(value) = fields.get_mut(&key) {
                        mutate_node(value, depth - 1, stream);
                    }
                }
            }
        }
        Value::Array(items) if depth > 0 && !items.is_empty() => {
            let index = stream.below(items.len());
            match stream.below(8) {
                0 => drop(items.remove(index)),
                1 => items.push(items[index].clone()),
                2 => items.truncate(index),
                _ => mutate_node(&mut items[index], depth - 1, stream),
            }
        }
        node => *node = replacement(node, stream),
    }
}

fn replacement(old: &Value, stream: &mut Stream) -> Value {
    const TEXTS: [&str; 14] = [
        "",
        "a",
        "##",
        "\0",
        "Ġ",
        "▁",
        "BPE",
        "WordPiece",
        "Unigram",
        "Precompiled",
        "(a*)*b",
        "a{1000000000}",
        "[",
        "\\p{L}{65535}{65535}",
    ];
    match stream.below(9) {
        0 => Value::Null,
        1 => json!(stream.chance(0.5)),
        2 => json!(TEXTS[stream.below(TEXTS.len())]),
        3 => json!([]),
        4 => json!({}),
        5 => json!(-1.5e300),
        6 => {
            let mut nested = old.clone();
            for _ in 0..stream.below(300) {
                nested = Value::Array(vec![nested]);
            }
            nested
        }
        7 => json!(TEXTS[stream.below(TEXTS.len())].repeat(1 + stream.below(1000))),
        _ => json!(interesting(old.as_u64().unwrap_or(1), stream)),
    }
}
