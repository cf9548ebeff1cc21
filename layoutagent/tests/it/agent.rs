//! The agent with a language model behind a mock endpoint: sizes, scene graph, repairs, boxes.

use std::path::PathBuf;

use common::assets::Assets;
use common::llm::{Llm, LlmOptions, LlmSpec};
use common::testing::endpoint::{Call, MockEndpoint, Reply};
use layoutagent::agent::{Scene, scene_of_llm};
use layoutagent::baselines::llm_layout;

fn open(endpoint: &MockEndpoint) -> Llm {
    let options = LlmOptions { cache: None, ..LlmOptions::new(Assets::from_env()) };
    Llm::open(&endpoint.spec().parse::<LlmSpec>().unwrap(), &options).unwrap()
}

const GOOD: &str = r#"{"objects": [{"id": "mug", "image": "mug.png", "size_m": [0.1, 0.09]},
 {"id": "desk", "size_m": [1.4, 0.75]}], "relations": [{"type": "on", "a": "mug", "b": "desk"}],
 "prompt_bg": "office"}"#;

/// How many messages the model was sent.
fn messages(call: &Call) -> usize {
    call.body["messages"].as_array().unwrap().len()
}

#[test]
fn unusable_scenes_are_sent_back_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("mug.png");
    image::RgbaImage::from_pixel(4, 4, image::Rgba([9, 9, 9, 255])).save(&picture).unwrap();
    let good = GOOD.replace("mug.png", &picture.display().to_string());
    let endpoint = MockEndpoint::start(move |call| {
        let wrong = [
            // an unknown word, a contradiction, a file that nobody gave
            good.replace("\"on\"", "\"hovering\""),
            good.replace(
                "]}",
                "]}, {\"id\": \"x\"}], \"relations\": [{\"type\": \"left-of\", \"a\": \"mug\", \
                 \"b\": \"desk\"}, {\"type\": \"left-of\", \"a\": \"desk\", \"b\": \"mug\"}], \
                 \"no_overlap\": true, \"canvas\": [64, 64], \"style\": \"",
            ),
            good.replace("mug.png", "secret.png"),
        ];
        match (messages(call) - 2) / 2 {
            0 => assert!(call.body.to_string().contains("image_url"), "the picture is shown"),
            1 => assert!(call.last_text().contains("hovering"), "{}", call.last_text()),
            2 => assert!(call.last_text().contains("That does not pass"), "{}", call.last_text()),
            _ => assert!(call.last_text().contains("secret.png"), "{}", call.last_text()),
        }
        Reply::chat(wrong.get((messages(call) - 2) / 2).unwrap_or(&good))
    });
    let pictures = [picture.clone()];
    let scene = scene_of_llm(&open(&endpoint), "a mug on a desk", &pictures, [256, 256]).unwrap();
    assert_eq!(scene.objects[0].image, Some(picture));
    assert_eq!(scene.objects[1].size_m, Some([1.4, 0.75]));
    assert_eq!((scene.relations.len(), endpoint.calls()), (1, 4));
}

#[test]
fn three_repairs_are_enough_or_the_answer_is_unusable() {
    let endpoint = MockEndpoint::start(|_| Reply::chat("I would rather write a poem."));
    let none: [PathBuf; 0] = [];
    let error = scene_of_llm(&open(&endpoint), "a mug", &none, [256, 256]).unwrap_err();
    assert_eq!((error.exit_code(), endpoint.calls()), (5, 4), "{error}");
}

#[test]
fn boxes_of_a_language_model_are_judged_like_all_others() {
    let scene = Scene::new(
        layoutagent::data::scene::SceneFile::parse(
            r#"{"canvas": [256, 256], "objects": [{"id": "a", "size_m": [1, 1]},
             {"id": "b", "size_m": [1, 1]}], "relations": [{"type": "leftward", "a": "a", "b": "b"}]}"#,
        )
        .unwrap(),
        &[],
    )
    .unwrap();
    let answer = |text: &'static str| {
        let endpoint = MockEndpoint::start(move |_| Reply::chat(text));
        llm_layout(&open(&endpoint), &scene)
    };
    assert!(answer(r#"{"a": [2, 30], "b": [55, 30]}"#).unwrap().is_verified());
    assert!(!answer(r#"{"a": [55, 30], "b": [2, 30]}"#).unwrap().is_verified());
    assert_eq!(answer(r#"{"a": [55, 30]}"#).unwrap_err().exit_code(), 5);
}
