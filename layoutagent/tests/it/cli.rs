//! The binary: plans, renders, refuses.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn run(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_layoutagent"))
        .args(args)
        .args(["--threads", "1", "--offline"])
        .current_dir(folder)
        .output()
        .unwrap()
}

#[track_caller]
fn ok(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn fails(folder: &Path, args: &[&str], code: i32, pieces: &[&str]) {
    let output = run(folder, args);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    for piece in pieces {
        assert!(message.contains(piece), "{args:?}: {piece:?} is not in {message}");
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Writes a small picture with a transparent border.
fn picture(path: &Path) {
    let image = image::RgbaImage::from_fn(20, 30, |x, y| {
        let inside = (4..16).contains(&x) && (4..26).contains(&y);
        image::Rgba(if inside { [200, 40, 40, 255] } else { [0; 4] })
    });
    image.save(path).unwrap();
}

const SCENE: &str = r#"{"canvas": [256, 192],
 "objects": [{"id": "desk", "image": "a.png", "size_m": [1.4, 0.7]},
             {"id": "cup", "image": "a.png", "size_m": [0.3, 0.3]},
             {"id": "lamp", "image": "a.png", "box": [0.05, 0.2, 0.1, 0.3]}],
 "relations": [{"type": "on", "a": "cup", "b": "desk"}, {"type": "right of", "a": "desk", "b": "lamp"}]}"#;

#[test]
fn plans_are_verified_locks_are_kept_and_pictures_are_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    picture(&path.join("a.png"));
    std::fs::write(path.join("scene.json"), SCENE).unwrap();
    if common::testing::asset_or_skip("noto-emoji", "icons.json").is_none() {
        return;
    }
    let plan_scene = |to, seed| {
        let scene = ["plan", "--scene", "scene.json", "--solver", "analytic"];
        ok(path, &[&scene[..], &["--to", to, "--seed", seed]].concat())
    };
    plan_scene("one", "0");
    let plan = json(&path.join("one/layouts.json"));
    assert_eq!(plan["candidates"][0]["verified"], true, "{plan}");
    assert_eq!(plan["candidates"][0]["violated"], serde_json::json!([]));
    for candidate in plan["candidates"].as_array().unwrap() {
        assert_eq!(candidate["boxes"]["lamp"], serde_json::json!([0.05, 0.2, 0.1, 0.3]));
    }
    // the same seed gives the same bytes, another seed does not
    plan_scene("two", "0");
    let bytes = |name: &str| std::fs::read(path.join(name).join("layouts.json")).unwrap();
    assert_eq!(bytes("one"), bytes("two"));
    plan_scene("three", "1");
    assert_ne!(bytes("one"), bytes("three"));
    // lock one object, resample the rest
    let add = ["--lock", "desk", "--add", "in cup", "--drop", "right-of desk lamp"];
    let mut change = vec!["plan", "--from", "one/layouts.json", "--to", "four", "--seed", "5"];
    change.extend(["--solver", "analytic"]);
    change.extend(&add[..4]);
    ok(path, &change);
    let kept = |plan: &Value| plan["candidates"][0]["boxes"]["desk"].clone();
    assert_eq!(kept(&json(&path.join("four/layouts.json"))), kept(&plan));
    change.extend(&add[4..]);
    fails(path, &change, 2, &["no such relation"]);
    // pictures
    ok(path, &["render", "one/layouts.json", "--to", "picture"]);
    let png = std::fs::read(path.join("picture/scene.png")).unwrap();
    let image = image::load_from_memory(&png).unwrap();
    assert_eq!((image.width(), image.height()), (256, 192));
    assert!(png.windows(9).any(|w| w == b"iTXtSeed\0"));
    let layers = json(&path.join("picture/objects.json"));
    assert_eq!(layers["back_to_front"].as_array().unwrap().len(), 3);
    let text = ok(path, &["eval", "one/layouts.json", "--json"]);
    let rows: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (rows[0]["csr"].as_f64(), rows[0]["out_of_frame"].as_f64().map(|v| v < 1e-6)),
        (Some(1.0), Some(true))
    );
}

#[test]
fn contradictions_end_with_the_conflict() {
    let folder = tempfile::tempdir().unwrap();
    let text = "A cup to the left of a laptop. A laptop to the left of a cup. A dog above a cup.";
    let pieces = ["leftward(cup, laptop)", "leftward(laptop, cup)", "exclude each other"];
    // the quickest of three: another process may hold the core meanwhile
    let quickest = (0..3).map(|_| {
        let started = std::time::Instant::now();
        fails(folder.path(), &["plan", text, "--solver", "analytic"], 3, &pieces);
        started.elapsed().as_secs_f64()
    });
    let quickest = quickest.fold(f64::INFINITY, f64::min);
    assert!(quickest < 1.0, "the conflict took {quickest} s");
    fails(folder.path(), &["plan", "gobbledygook"], 3, &["no known object"]);
    fails(folder.path(), &["plan"], 2, &["TEXT"]);
    fails(folder.path(), &["plan", "a cup", "--set", "solve.steps_=1"], 2, &["solve.steps"]);
}

#[test]
fn malformed_scenes_are_refused_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let objects = |list: &str| format!("{{\"objects\": [{list}]}}");
    let relations = |list: &str| {
        format!("{{\"objects\": [{{\"id\":\"a\"}},{{\"id\":\"b\"}}], \"relations\": [{list}]}}")
    };
    let cases: Vec<(String, &str)> = vec![
        (String::new(), "scene object"),
        ("{".into(), "scene object"),
        ("[]".into(), "scene object"),
        ("null".into(), "scene object"),
        ("{}".into(), "objects"),
        ("{\"objects\": 3}".into(), "scene object"),
        (objects(""), "1 to 500 objects"),
        (objects("{\"id\": 3}"), "scene object"),
        (objects("{\"id\": \"\"}"), "object id"),
        (objects("{\"id\": \"a\"}, {\"id\": \"a\"}"), "twice"),
        (objects("{\"name\": \"a\"}"), "unknown field `name`"),
        (objects("{\"id\": \"a\", \"size_m\": [1]}"), "scene object"),
        (objects("{\"id\": \"a\", \"size_m\": [0, 1]}"), "size_m"),
        (objects("{\"id\": \"a\", \"size_m\": [-1, 1]}"), "size_m"),
        (objects("{\"id\": \"a\", \"size_m\": [1e9, 1]}"), "size_m"),
        (objects("{\"id\": \"a\", \"size_m\": [1e999, 1]}"), "scene.json"),
        (objects("{\"id\": \"a\", \"box\": [0, 0, 0, 0.1]}"), "box"),
        (objects("{\"id\": \"a\", \"box\": [0.5, 0, 0.6, 0.1]}"), "inside"),
        (objects("{\"id\": \"a\", \"box\": [0, 0, 1]}"), "scene object"),
        (relations("{\"type\": \"left-of\", \"a\": \"a\", \"b\": \"c\"}"), "unknown object \"c\""),
        (relations("{\"type\": \"left-of\", \"a\": \"a\", \"b\": \"a\"}"), "with itself"),
        (relations("{\"type\": \"left-of\", \"a\": \"a\"}"), "two objects"),
        (relations("{\"type\": \"in\", \"a\": \"a\", \"b\": \"b\"}"), "one object"),
        (relations("{\"type\": \"lefft-of\", \"a\": \"a\", \"b\": \"b\"}"), "nearest: left-of"),
        (relations("{\"type\": \"hovering\", \"a\": \"a\", \"b\": \"b\"}"), "h-aligned"),
        (relations("{\"a\": \"a\", \"b\": \"b\"}"), "type"),
        (relations("7"), "scene object"),
        ("{\"canvas\": [0, 10], \"objects\": [{\"id\": \"a\"}]}".into(), "canvas"),
        ("{\"canvas\": [4000, 20], \"objects\": [{\"id\": \"a\"}]}".into(), "aspect"),
        (objects("{\"id\": \"a\", \"cut\": [0, 0, 1, 1]}"), "without an image"),
        (
            objects("{\"id\": \"a\", \"image\": \"a.png\", \"cut\": [0, 0, 1, 2]}"),
            "shares of the image",
        ),
        ("{\"light\": \"below\", \"objects\": [{\"id\": \"a\"}]}".into(), "light"),
        ("{\"objects\": [{\"id\": \"a\"}], \"extra\": 1}".into(), "unknown field `extra`"),
    ];
    assert!(cases.len() >= 30);
    for (text, piece) in &cases {
        std::fs::write(path.join("scene.json"), text).unwrap();
        let args = ["plan", "--scene", "scene.json", "--solver", "analytic"];
        fails(path, &args, 3, &[piece]);
    }
    std::fs::write(path.join("scene.json"), b"\xff\xfe{}").unwrap();
    fails(path, &["plan", "--scene", "scene.json"], 3, &["scene.json", "UTF-8"]);
    fails(path, &["plan", "--scene", "absent.json"], 6, &["absent.json"]);
}

#[test]
fn malformed_pictures_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    picture(&path.join("good.png"));
    let good = std::fs::read(path.join("good.png")).unwrap();
    let mut huge = good.clone();
    huge[16..24].copy_from_slice(&[0, 0, 255, 255, 0, 0, 255, 255]);
    let mut flipped = good.clone();
    flipped[45] ^= 0xff;
    let empty = image::RgbaImage::new(4, 4);
    empty.save(path.join("empty.png")).unwrap();
    let cases: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"no picture".to_vec(),
        good[..20].to_vec(),
        good[..good.len() / 2].to_vec(),
        huge,
        flipped,
        b"GIF89a\x01\x00\x01\x00\x00\x00\x00;".to_vec(),
        b"\xff\xd8\xff\xe0\x00\x10JFIF".to_vec(),
        std::fs::read(path.join("empty.png")).unwrap(),
        [&good[..8], &[0; 64]].concat(),
    ];
    for bytes in cases {
        std::fs::write(path.join("bad.png"), &bytes).unwrap();
        let error = layoutagent::render::cutout::read(&path.join("bad.png")).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(error.to_string().contains("bad.png"), "{error}");
    }
    assert_eq!(
        layoutagent::render::cutout::read(&path.join("good.png")).unwrap().dimensions(),
        (12, 22)
    );
}

/// The README's commands for one's own data.
#[test]
fn the_sample_becomes_a_picture_in_two_commands() {
    if common::testing::asset_or_skip("noto-emoji", "icons.json").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample/scene.json");
    for solver in ["analytic", "construct"] {
        let scene = sample.to_str().unwrap();
        ok(path, &["plan", "--scene", scene, "--solver", solver, "--to", "plan"]);
        let plan = json(&path.join("plan/layouts.json"));
        let best = &plan["candidates"][0];
        assert_eq!(best["verified"], true, "{solver}");
        assert_eq!(best["boxes"]["clock"], serde_json::json!([0.08, 0.06, 0.14, 0.19]));
    }
    ok(path, &["render", "plan/layouts.json", "--to", "picture"]);
    let image = image::open(path.join("picture/scene.png")).unwrap();
    assert_eq!((image.width(), image.height()), (480, 360));
    let layers = json(&path.join("picture/objects.json"));
    assert_eq!(layers["back_to_front"].as_array().unwrap().len(), 4);
}
