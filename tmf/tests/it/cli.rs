//! The binary on files: a user's tables from fit to predict, exit codes, messages.

use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

fn run(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tmf"));
    command.args(args).current_dir(folder).env("SEPTET_CACHE", folder.join("cache"));
    command.output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn ok(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn fails(folder: &Path, args: &[&str], code: i32, pieces: &[&str]) {
    let output = run(folder, args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    for piece in pieces {
        assert!(message.contains(piece), "{args:?}: no {piece:?} in {message}");
    }
    assert!(output.stdout.is_empty());
}

const SMALL: [&str; 9] = [
    "--offline",
    "--profile",
    "smoke",
    "--set",
    "modalities.text=false",
    "--set",
    "rank.candidates=3",
    "--set",
    "rank.retrieved=8",
];

/// Twelve items, ten users with nine events each; item i9 has a very long title with special tokens,
/// item i10 none, item i11 no event.
fn tables() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut items = "item,title,image\n".to_owned();
    for item in 0..12 {
        let title = match item {
            9 => format!("{} [ItemEmb] <b_buy>", "long ".repeat(2000)),
            10 => String::new(),
            _ => format!("thing number {item}"),
        };
        items.push_str(&format!("i{item},{title},{}\n", if item == 3 { "broken.png" } else { "" }));
    }
    let mut events = "user,item,behaviour,time\n".to_owned();
    for user in 0..10 {
        for at in 0..9 {
            let behaviour = ["view", "cart", "buy"][at % 3];
            events.push_str(&format!("u{user},i{},{behaviour},{at}\n", (user + 2 * at) % 11));
        }
    }
    std::fs::write(folder.path().join("items.csv"), items).unwrap();
    std::fs::write(folder.path().join("events.csv"), events).unwrap();
    std::fs::write(folder.path().join("broken.png"), b"no picture").unwrap();
    folder
}

fn with(args: &[&'static str]) -> Vec<&'static str> {
    args.iter().copied().chain(SMALL).collect()
}

#[test]
fn a_model_is_fitted_saved_and_recommends() {
    let folder = tables();
    let path = folder.path();
    let fit = with(&["fit", "events.csv", "--items", "items.csv", "--set", "input.target=buy"]);
    assert!(ok(path, &fit).contains("buy, cart, view"));
    ok(path, &["predict", "events.csv", "--top", "3"]);
    let text = std::fs::read_to_string(path.join("recommendations.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 10);
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let items = line["items"].as_array().unwrap();
        assert_eq!(items.len(), 3);
        let of = |at: usize| items[at]["log_likelihood"].as_f64().unwrap();
        assert!(of(0) >= of(1) && of(1) >= of(2));
        assert!(items[0]["probability"].as_f64().unwrap() <= 1.0);
        assert!(items[0]["contribution"]["graph"].is_number());
        assert!(items[0]["contribution"]["image"].is_null());
        assert_eq!(line["attention"]["graph"], 1.0);
    }
    // the same again gives the same bytes
    ok(path, &["predict", "events.csv", "--top", "3", "--threads", "1"]);
    assert_eq!(std::fs::read_to_string(path.join("recommendations.jsonl")).unwrap(), text);
    assert!(ok(path, &["eval", "events.csv"]).contains("hr@1"));
    std::fs::write(path.join("model/model.safetensors"), b"cut").unwrap();
    fails(path, &["predict", "events.csv"], 4, &["model.safetensors"]);
}

#[test]
fn pictures_are_encoded_by_a_clip_that_is_named() {
    let folder = tables();
    let path = folder.path();
    let picture = tmf::encoders::image::Picture::new(40, 30, vec![120; 3600]).unwrap();
    std::fs::write(path.join("broken.png"), picture.png().unwrap()).unwrap();
    let clip = concat!(env!("CARGO_MANIFEST_DIR"), "/../common/tests/golden/diffusion/clip_folder");
    let named = format!("input.clip={clip}");
    let mut fit = with(&["fit", "events.csv", "--items", "items.csv"]);
    fit.extend(["--set", &named]);
    ok(path, &fit);
    let card = std::fs::read_to_string(path.join("model/model.json")).unwrap();
    let card: serde_json::Value = serde_json::from_str(&card).unwrap();
    assert_eq!(card["encoders"][0], format!("CLIP {clip}"));
    let shown: Vec<bool> = serde_json::from_value(card["present"][0].clone()).unwrap();
    assert_eq!(shown.iter().filter(|shown| **shown).count(), 1, "item i3 alone has a picture");
    ok(path, &["predict", "events.csv"]);
    fit.extend(["--set", "input.clip=nowhere"]);
    fails(path, &fit, 2, &["nowhere"]);
}

#[test]
fn the_sample_of_the_card_works() {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/sample");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let (events, items) = (format!("{sample}/events.csv"), format!("{sample}/items.csv"));
    let mut fit = vec!["fit", &events, "--items", &items, "--set", "input.target=buy"];
    // the card's command but for the size and the text encoder, which need time and a download
    fit.extend(SMALL);
    fit.extend(["--set", "graph_encoder=mbht"]);
    assert!(ok(path, &fit).contains("buy, cart, view"));
    ok(path, &["predict", &events, "--top", "5"]);
    let text = std::fs::read_to_string(path.join("recommendations.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 24);
    let card = std::fs::read_to_string(path.join("model/model.json")).unwrap();
    let card: serde_json::Value = serde_json::from_str(&card).unwrap();
    assert_eq!(card["encoders"][2], "MBHT");
    assert!(card["temperature"].as_f64().unwrap() > 0.0);
    assert!(ok(path, &["eval", &events]).contains("24 users"));
}

#[test]
fn bad_tables_are_named_with_row_and_column() {
    let folder = tables();
    let path = folder.path();
    let write = |text: &str| std::fs::write(path.join("bad.csv"), text).unwrap();
    let fit = with(&["fit", "bad.csv", "--items", "items.csv"]);
    write("user,item,behaviour,time\nu,i1,view,1\nu,nope,view,2\n");
    fails(path, &fit, 3, &["bad.csv", "row 3", "column item", "nope"]);
    write("user,item,behaviour,time\nu,i1,view,soon\n");
    fails(path, &fit, 3, &["row 2", "column time", "soon"]);
    write("user,item,time\nu,i1,1\n");
    fails(path, &fit, 3, &["behaviour"]);
    write("user,item,behaviour,time\nu,i1,view,1\nu,i2,view,2\nu,i3,wish,3\n");
    let mut known = fit.clone();
    known.extend(["--set", "input.behaviours=[\"view\", \"buy\"]"]);
    fails(path, &known, 3, &["row 4", "column behaviour", "wish", "view, buy"]);
    let mut target = fit.clone();
    target.extend(["--set", "input.target=buy"]);
    fails(path, &target, 2, &["input.target", "view, wish"]);
    fails(path, &["predict", "events.csv", "--model", "none"], 6, &["none"]);
}

#[test]
fn configs_are_shown_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    assert!(ok(path, &["config"]).contains("fusion.heads"));
    assert!(ok(path, &["config", "--schema"]).contains("three_stage"));
    fails(path, &["config", "--set", "fusion.heads=3"], 2, &["fusion.heads"]);
    fails(path, &["config", "--set", "fusion.hedas=3"], 2, &["heads"]);
    let blind = ["config", "--set", "fusion.causal=false"];
    fails(path, &blind, 2, &["learn_history"]);
    fails(path, &["config", "--set", "prompt.answer=title"], 2, &["prompt.titles"]);
    fails(path, &["config", "--set", "lm.item_tokens=false"], 2, &["train.warm_up.steps"]);
    fails(path, &["config", "--set", "train.dropout=1"], 2, &["train.dropout"]);
    for profile in ["smoke", "cpu", "paper"] {
        ok(path, &["config", "--profile", profile]);
    }
}
