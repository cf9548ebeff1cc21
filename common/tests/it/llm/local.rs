//! Local models at the level of text: tiny random ones for properties, SmolLM2 for meaning.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use common::assets::{AssetOptions, Assets};
use common::llm::json::{Extracted, extract};
use common::llm::{Finish, Llm, LlmOptions, Message, OptionScore, Prompt, Request};
use common::testing::mutate::tiny_gguf;
use common::testing::{assert_close, asset_or_skip};
use serde_json::{Value, json};

fn options() -> LlmOptions {
    let folder = std::env::temp_dir().join("septet-test-without-assets");
    let assets = AssetOptions { cache: folder, ..AssetOptions::default() };
    LlmOptions { cache: None, ..LlmOptions::new(Assets::new(assets)) }
}

fn open(path: &Path, options: &LlmOptions) -> Llm {
    Llm::open(&format!("gguf:{}", path.display()).parse().unwrap(), options).unwrap()
}

fn smollm2() -> Option<Llm> {
    let path = asset_or_skip("smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf")?;
    Some(open(&path, &options()))
}

fn review_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "category": { "enum": ["tops", "dresses", "jackets"] },
            "stars": { "type": "integer", "minimum": 1, "maximum": 5 },
            "tags": { "type": "array", "items": { "type": "string", "maxLength": 3 }, "maxItems": 2 },
        },
        "required": ["category", "stars", "tags"],
        "additionalProperties": false,
    })
}

/// Whether `value` keeps [`review_schema`].
fn is_review(value: &Value) -> bool {
    let strings = value["tags"].as_array().is_some_and(|tags| {
        tags.len() <= 2
            && tags.iter().all(|tag| tag.as_str().is_some_and(|tag| tag.chars().count() <= 3))
    });
    let category = ["tops", "dresses", "jackets"].iter().any(|known| value["category"] == *known);
    let stars = value["stars"].as_u64().is_some_and(|stars| (1..=5).contains(&stars));
    strings && category && stars && value.as_object().is_some_and(|object| object.len() == 3)
}

#[test]
fn random_models_write_nothing_but_the_schema() {
    let folder = tempfile::tempdir().unwrap();
    for architecture in ["llama", "qwen2", "gemma3"] {
        let path = folder.path().join(format!("{architecture}.gguf"));
        std::fs::write(&path, tiny_gguf(architecture, 3).layout().bytes).unwrap();
        let llm = open(&path, &options());
        let mut complete = 0;
        for seed in 0..25 {
            let mut request = Request::new(vec![Message::user("x")]).schema(review_schema());
            request.max_tokens = 80;
            request.temperature = 2.0;
            request.seed = seed;
            let answer = llm.generate(&request).unwrap();
            assert!(answer.usage.completion_tokens.unwrap() <= 80);
            match answer.finish {
                Finish::Stop => {
                    let value: Value = serde_json::from_str(&answer.text).unwrap();
                    assert!(is_review(&value), "{architecture} {seed}: {}", answer.text);
                    complete += 1;
                }
                // The budget ended: the text is cut off and says so.
                Finish::Length => {
                    assert!(matches!(extract(&answer.text), Extracted::Failed(_)), "{answer:?}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(complete >= 5, "{architecture}: {complete} of 25 complete");
    }
}

#[test]
fn generation_is_bounded_repeatable_and_cached() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llama.gguf");
    std::fs::write(&path, tiny_gguf("llama", 3).layout().bytes).unwrap();
    let cached = LlmOptions { cache: Some(folder.path().join("answers")), ..options() };
    let mut request = Request::new(vec![Message::user("the")]).max_tokens(10);
    request.temperature = 1.0;
    let plain = open(&path, &options());
    let first = plain.generate(&request).unwrap();
    assert_eq!(plain.generate(&request).unwrap(), first);
    assert!(first.usage.completion_tokens.unwrap() <= 10);

    let schema = Request::new(vec![Message::user("the")]).schema(json!({ "enum": [1, 2] }));
    let llm = open(&path, &cached);
    let answer = llm.generate(&schema).unwrap();
    assert!(!answer.cached && answer.complete(), "{answer:?}");
    let again = open(&path, &cached).generate(&schema).unwrap();
    assert!(again.cached);
    assert_eq!(again.text, answer.text);

    let prompt = Prompt::Chat(vec![Message::user("the")]);
    let choices = ["and".to_owned(), "in".to_owned()];
    let scores = llm.score_options(&prompt, &choices).unwrap();
    // The file of other weights under the same name must not meet the first one's answers.
    std::fs::write(&path, tiny_gguf("llama", 4).layout().bytes).unwrap();
    let other = open(&path, &cached);
    assert_ne!(other.score_options(&prompt, &choices).unwrap(), scores);
    assert!(!other.generate(&schema).unwrap().cached);
}

#[test]
fn scores_are_recorded_and_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llama.gguf");
    std::fs::write(&path, tiny_gguf("llama", 3).layout().bytes).unwrap();
    let record = folder.path().join("record.jsonl");
    let recording = LlmOptions { record: Some(record.clone()), ..options() };
    let prompt = Prompt::Raw("the".to_owned());
    let choices = [" and".to_owned(), "12".to_owned()];
    let scores = open(&path, &recording).score_options(&prompt, &choices).unwrap();
    let spec = format!("replay:{}", record.display()).parse().unwrap();
    let replay = Llm::open(&spec, &options()).unwrap();
    assert_eq!(replay.score_options(&prompt, &choices).unwrap(), scores);
    assert!(replay.score_options(&prompt, &choices[..1]).is_err());
}

#[test]
fn many_prompts_score_as_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llama.gguf");
    std::fs::write(&path, tiny_gguf("llama", 3).layout().bytes).unwrap();
    let llm = open(&path, &options());
    let choices: Vec<String> = [" and", " an", "12", " and then"].map(str::to_owned).to_vec();
    let mut asked: Vec<(Prompt, Vec<String>)> = (0..7)
        .map(|n| (Prompt::Raw(format!("{} the {n}", "x".repeat(n % 3))), choices.clone()))
        .collect();
    asked.insert(2, (Prompt::Raw("x".repeat(500)), choices.clone()));
    asked.insert(5, (Prompt::Raw("the".into()), Vec::new()));
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let many = pool.install(|| llm.score_many(&asked)).unwrap();
        assert_eq!(many.len(), asked.len());
        for ((prompt, choices), scores) in asked.iter().zip(many) {
            match (llm.score_options(prompt, choices), scores) {
                (Ok(alone), Ok(scores)) => {
                    for (a, b) in alone.iter().zip(&scores) {
                        assert_close(&a.token_log_probs, &b.token_log_probs, 1e-5, 0.0);
                    }
                }
                (Err(alone), Err(error)) => assert_eq!(alone.to_string(), error.to_string()),
                (alone, scores) => panic!("{alone:?} alone, {scores:?} among many"),
            }
        }
    }
    assert!(llm.score_many(&[]).unwrap().is_empty());
}

#[test]
fn prompts_beyond_the_context_and_bad_schemas_are_errors_of_their_kind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llama.gguf");
    std::fs::write(&path, tiny_gguf("llama", 3).layout().bytes).unwrap();
    let llm = open(&path, &options());
    let error = llm.generate(&Request::new(vec![Message::user("x".repeat(500))])).unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
    let request = Request::new(vec![Message::user("x")]).schema(json!({ "type": "nonsense" }));
    let error = llm.generate(&request).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    let image = Message::user("x").with_image("image/png", vec![1]);
    assert_eq!(llm.generate(&Request::new(vec![image])).unwrap_err().exit_code(), 2);
    let missing = Llm::open(&"gguf:no-such-model".parse().unwrap(), &options()).unwrap_err();
    assert_eq!(missing.exit_code(), 4, "{missing}");
}

fn best(scores: &[OptionScore]) -> usize {
    let mean = |index: &usize| scores[*index].mean_log_prob();
    (0..scores.len()).max_by(|a, b| mean(a).total_cmp(&mean(b))).unwrap()
}

#[test]
fn smollm2_scores_what_makes_sense() {
    let Some(llm) = smollm2() else { return };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let raw = |text: &str| Prompt::Raw(text.to_owned());
    let cities = words(&[" banana", " Paris", " Berlin and then some"]);
    let scores = llm.score_options(&raw("The capital of France is"), &cities).unwrap();
    assert_eq!(best(&scores), 1, "{scores:?}");

    // P(a b | x) = P(a | x) · P(b | x a), and neither order nor earlier prompts matter.
    let whole = llm.score_options(&raw("One two"), &words(&[" three four"])).unwrap();
    let first = llm.score_options(&raw("One two"), &words(&[" three"])).unwrap();
    let second = llm.score_options(&raw("One two three"), &words(&[" four"])).unwrap();
    let sum = first[0].log_prob + second[0].log_prob;
    assert_close(&[whole[0].log_prob], &[sum], 1e-3, 0.0);
    let again = llm.score_options(&raw("The capital of France is"), &cities[..2]).unwrap();
    for (again, score) in again.iter().zip(&scores) {
        assert_close(&again.token_log_probs, &score.token_log_probs, 1e-3, 0.0);
    }
}

#[test]
fn smollm2_chats_stops_and_keeps_to_a_schema() {
    let Some(llm) = smollm2() else { return };
    let question = vec![Message::user("What is the capital of France?")];
    let mut request = Request::new(question.clone()).max_tokens(24);
    let answer = llm.generate(&request).unwrap();
    assert!(answer.text.contains("Paris"), "{answer:?}");
    assert!(answer.complete() && !answer.text.contains("<|im_end|>"), "{answer:?}");

    request.stop = vec!["Par".to_owned()];
    let stopped = llm.generate(&request).unwrap();
    assert!(stopped.complete() && answer.text.starts_with(&stopped.text), "{stopped:?}");
    assert!(!stopped.text.contains("Par"), "{stopped:?}");

    let review = "Review: I love this warm wool jacket, it fits well and is worth every cent.\n\
                  Give category, stars from 1 to 5 and tags.";
    let request = Request::new(vec![Message::user(review)]).schema(review_schema()).max_tokens(60);
    let answer = llm.generate(&request).unwrap();
    let value: Value = serde_json::from_str(&answer.clone().into_text().unwrap()).unwrap();
    assert!(is_review(&value), "{}", answer.text);

    let cut = llm.generate(&Request { max_tokens: 3, ..request }).unwrap();
    assert_eq!(cut.finish, Finish::Length);
    assert!(cut.into_text().is_err());
}
