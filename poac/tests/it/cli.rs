//! The binary: exit codes and messages for bad input. Nothing here trains or fetches.

use std::process::{Command, Output};

fn run(args: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_poac"))
        .args(args)
        .current_dir(folder.path())
        .env("SEPTET_CACHE", folder.path().join("cache"))
        .output()
        .unwrap()
}

#[track_caller]
fn fails(args: &[&str], code: i32, piece: &str) {
    let output = run(args);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.contains(piece), "no {piece:?} in {message}");
    assert!(output.stdout.is_empty());
}

#[test]
fn bad_prompts_and_settings_are_named() {
    fails(&["rewrite", "  \n"], 3, "empty prompt");
    fails(&["generate", &"x".repeat(10_000)], 3, "at most 2000");
    fails(&["rewrite", "peace", "--count", "0"], 2, "--count 0");
    fails(&["generate", "peace", "--scale", "99"], 2, "scale");
    fails(&["config", "--set", "plm.widht=3"], 2, "nearest key is plm.width");
    fails(&["config", "--set", "diffusion.size=30"], 2, "multiple of 8");
    fails(&["config", "--set", "plm.pace.batch=3"], 2, "even number");
    fails(&["config", "--set", "search.groups=9"], 2, "search.groups");
    fails(&["generate", "\u{1b}\u{7}\u{85}"], 3, "empty prompt");
    fails(&["eval", "absent.csv"], 6, "absent.csv");
}

#[test]
fn config_prints_what_holds() {
    let output = run(&["config", "--profile", "smoke", "--set", "diffusion.sample.guidance=1.5"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(text.contains("guidance = 1.5") && text.contains("objects = 200"), "{text}");
}

#[test]
fn an_absent_asset_is_one_sentence() {
    let output = run(&["rewrite", "peace", "--offline", "--assets", "nowhere"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{message}");
    assert!(message.contains("noto-emoji") && message.lines().count() == 1, "{message}");
}
