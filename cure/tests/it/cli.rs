//! The binary on files: verbs, exit codes, messages.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Output};

use common::rng::Seed;
use cure::data::{Synthetic, synthetic};
use tempfile::TempDir;

/// Settings of a model that trains in a second.
const SMALL: [&str; 15] = [
    "--threads",
    "1",
    "--profile",
    "smoke",
    "--set",
    "data.users=0",
    "--set",
    "data.history=4",
    "--set",
    "fit.epochs=4",
    "--set",
    "circuit.pairs=12",
    "--set",
    "data.title_tokens=2",
    "--offline",
];

fn run(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cure"))
        .args(args)
        .args(SMALL)
        .args(["--set", "unlearn.steps=4"])
        .current_dir(folder)
        .env("SEPTET_CACHE", folder.join("cache"))
        .env("SEPTET_OFFLINE", "1")
        .env_remove("SEPTET_ASSETS")
        .output()
        .unwrap()
}

#[track_caller]
fn ok(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn fails(folder: &Path, args: &[&str], code: i32, pieces: &[&str]) {
    let output = run(folder, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
    for piece in pieces {
        assert!(error.contains(piece), "{args:?}: no {piece:?} in {error}");
    }
}

/// A folder with `events.csv`.
fn folder() -> TempDir {
    let (data, _) = synthetic(Synthetic::default(), Seed::new(1));
    let mut text = "user,item,title,topics,time,liked\n".to_owned();
    for (user, events) in data.users.iter().zip(&data.histories) {
        for (time, event) in events.iter().enumerate() {
            let item = &data.items[event.item as usize];
            let (id, title, topic) = (&item.id, &item.title, &item.topics[0]);
            let liked = event.item % 4 < 2;
            writeln!(text, "{user},{id},{title},{topic},{time},{liked}").unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("events.csv"), text).unwrap();
    folder
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_model_is_fitted_explained_and_made_to_forget() {
    let folder = folder();
    let path = folder.path();
    let data = ["--data", "events.csv"];
    let with = |args: &[&str]| [args, &data[..]].concat().join(" ");
    let ok = |args: &str| ok(path, &args.split(' ').collect::<Vec<_>>());
    let fails = |args: &str, code, pieces: &[&str]| {
        fails(path, &args.split(' ').collect::<Vec<_>>(), code, pieces);
    };
    let fitted = json(&ok(&with(&["fit"])));
    assert!(fitted["test"]["auc"].as_f64().unwrap() > 0.5, "{fitted}");
    let weights = || std::fs::read(path.join("model/model.safetensors")).unwrap();
    let original = weights();
    let about: serde_json::Value =
        json(&std::fs::read_to_string(path.join("model/cure.json")).unwrap());
    assert_eq!(about["events"].as_array().unwrap().len(), 0);

    // users with training events: a held-out one has none
    let (mut user, mut other) = (String::new(), String::new());
    for number in 0..40 {
        let name = format!("u{number}");
        let output = run(path, &["circuit", "--data", "events.csv", "--user", &name]);
        if output.status.success() {
            if user.is_empty() {
                user = name;
            } else {
                other = name;
                break;
            }
        }
    }
    assert!(!other.is_empty());
    for file in ["forget.json", "forget.dot", "forget.svg", "retain.json"] {
        assert!(path.join("graphs").join(file).exists(), "{file}");
    }
    let explained = ok(&with(&["explain", "--user", &user]));
    assert!(explained.contains("a0.h0") && explained.contains("cosine"), "{explained}");

    let report = json(&ok(&with(&["unlearn", "--to", "new", "--json", "--user", &user])));
    assert_eq!(report["events"], 32);
    assert_eq!(weights(), original, "the original must not change");
    assert_ne!(std::fs::read(path.join("new/model.safetensors")).unwrap(), original);
    // a second request on the new model; the first one is remembered
    ok(&with(&["unlearn", "--model", "new", "--to", "newer", "--user", &other]));
    fails(
        &with(&["unlearn", "--model", "newer", "--to", "x", "--user", &user]),
        3,
        &["empty forget set", "not forgotten before"],
    );
    let eval = json(&ok(&with(&["eval", "--model", "newer", "--against", "model"])));
    assert_eq!(eval["forgotten"].as_array().unwrap().len(), 2);
    assert!(eval["against"]["jsd"].as_f64().unwrap() > 0.0);

    fails(&with(&["unlearn", "--to", "model", "--user", &user]), 2, &["--to"]);
    fails(&with(&["unlearn", "--to", "x", "--user", "nobody"]), 3, &["nobody", "40 users"]);
    fails(&with(&["unlearn", "--to", "x", "--user-share", "1"]), 3, &["all"]);
    fails(&with(&["unlearn", "--to", "x"]), 2, &["--user"]);
    assert!(!path.join("x").exists());
    damaged(path);
}

#[test]
fn single_events_are_forgotten_too() {
    let folder = folder();
    let path = folder.path();
    let mut text = std::fs::read_to_string(path.join("events.csv")).unwrap();
    let events: Vec<Vec<String>> =
        text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect();
    // users with two events: one to train on, without any history
    for number in 0..4 {
        for row in &events[1..3] {
            let (item, title, topic, time) = (&row[1], &row[2], &row[3], &row[4]);
            writeln!(text, "short{number},{item},{title},{topic},{time},true").unwrap();
        }
    }
    std::fs::write(path.join("events.csv"), text).unwrap();
    ok(path, &["fit", "--data", "events.csv"]);
    let unlearned = |request: [&str; 2]| {
        let args = ["unlearn", "--data", "events.csv", "--to", "new"];
        let output = run(path, &[&args[..], &request].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        // held-out users have nothing to forget
        let known = output.status.success() || error.contains("empty forget set");
        assert!(known, "{request:?}: {error}");
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    let short = (0..4).find_map(|number| unlearned(["--user", &format!("short{number}")])).unwrap();
    assert!(short.contains("no module was updated") && short.contains("1 user tokens"), "{short}");
    // an event in the middle of a window
    let of_user = |user: &str| events.iter().filter(|row| row[0] == user).nth(1).unwrap();
    let pairs = ["u0", "u1", "u2"].map(|user| format!("{user}:{}", of_user(user)[1]));
    let pair = pairs.iter().find_map(|pair| unlearned(["--pair", pair])).unwrap();
    assert!(pair.contains("1 events of 1 users deleted, 0 user tokens erased"), "{pair}");
}

/// The card's commands for own data, word for word.
#[test]
fn the_cards_commands_work_on_the_sample() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let card = std::fs::read_to_string(root.join("README.md")).unwrap();
    let (_, section) = card.split_once("Your data:").unwrap();
    let commands: Vec<&str> =
        section.lines().filter_map(|line| line.strip_prefix("cure ")).take(3).collect();
    assert_eq!(commands.len(), 3);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::copy(root.join("sample/interactions.csv"), path.join("events.csv")).unwrap();
    for command in commands {
        let command = command.split('#').next().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_cure"))
            .args(command.split_whitespace())
            .current_dir(path)
            .env("SEPTET_CACHE", path.join("cache"))
            .env("SEPTET_OFFLINE", "1")
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {error}");
        assert!(!output.stdout.is_empty(), "{command}");
    }
    // the token of a user who is gone is gone
    let tensors = candle_core::safetensors::load(
        path.join("without-dan/model.safetensors"),
        &candle_core::Device::Cpu,
    )
    .unwrap();
    let about = json(&std::fs::read_to_string(path.join("without-dan/cure.json")).unwrap());
    let words = about["vocabulary"]["words"].as_array().unwrap();
    let row = |word: &str| {
        let at = words.iter().position(|known| known == word).unwrap();
        let row = tensors["transformer.wte.weight"].get(at).unwrap().to_vec1::<f32>().unwrap();
        row.iter().map(|value| value.abs()).sum::<f32>()
    };
    assert_eq!(row("user:dan"), 0.0);
    assert!(row("user:ben") > 0.0);
}

/// Whether a run has saved `count` states below `folder`.
fn states(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let of = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if let Some(step) = name.strip_prefix("step-") {
            return step.parse::<usize>().unwrap_or(0);
        }
        if path.is_dir() { states(&path) } else { 0 }
    };
    entries.map(of).max().unwrap_or(0)
}

#[test]
fn a_killed_unlearning_resumes_to_the_same_bytes() {
    let folder = folder();
    let path = folder.path();
    ok(path, &["fit", "--data", "events.csv"]);
    let original = std::fs::read(path.join("model/model.safetensors")).unwrap();
    let command = |to: &str| {
        let set = ["--set", "unlearn.check_every=1", "--set", "unlearn.reextract=0"];
        let args = ["unlearn", "--data", "events.csv", "--user-share", "0.2", "--to", to];
        let runs = format!("runs-{to}");
        let all = [&args[..], &set[..], &["--out", &runs], &SMALL[..]].concat();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cure"));
        command.args(all).args(["--set", "unlearn.steps=40"]).current_dir(path);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command
    };
    assert!(command("whole").status().unwrap().success());
    let whole = std::fs::read(path.join("whole/model.safetensors")).unwrap();
    for (number, steps) in [1, 8, 20].into_iter().enumerate() {
        let to = format!("killed{number}");
        let mut child = command(&to).spawn().unwrap();
        while states(&path.join(format!("runs-{to}"))) < steps {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        assert_eq!(std::fs::read(path.join("model/model.safetensors")).unwrap(), original);
        assert!(command(&to).arg("--resume").status().unwrap().success());
        let resumed = std::fs::read(path.join(to).join("model.safetensors")).unwrap();
        assert_eq!(resumed, whole, "killed at step {steps}");
    }
    assert_ne!(whole, original);
}

/// Weights with a missing or an additional tensor.
fn damaged(path: &Path) {
    let file = path.join("model/model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &candle_core::Device::Cpu).unwrap();
    let eval = ["eval", "--data", "events.csv"];
    tensors.insert("extra.weight".into(), tensors["transformer.ln_f.weight"].clone());
    candle_core::safetensors::save(&tensors, &file).unwrap();
    fails(path, &eval, 4, &["extra.weight", "model.safetensors"]);
    tensors.remove("extra.weight");
    tensors.remove("transformer.ln_f.weight");
    candle_core::safetensors::save(&tensors, &file).unwrap();
    fails(path, &eval, 4, &["transformer.ln_f.weight", "nearest"]);
}

#[test]
fn bad_tables_and_keys_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let case = |text: &str, pieces: &[&str]| {
        std::fs::write(path.join("bad.csv"), text).unwrap();
        fails(path, &["fit", "--data", "bad.csv"], 3, pieces);
    };
    case("user,item,time,liked\na,b,1,true\n", &["bad.csv", "title"]);
    case("user,item,title,time,liked\na,b,c,1,maybe\n", &["row 2", "liked", "true or false"]);
    case("user,item,title,time,liked\na,b,c,1,yes\na,b,d,1,yes\n", &["row 3", "title"]);
    case("user,item,title,time,liked\na,b,c,1,yes\n", &["1 users", "at least 3"]);
    fails(path, &["config", "--set", "unlearn.lr=-1"], 2, &["unlearn.lr", "above 0"]);
    fails(path, &["config", "--set", "groups.detla=1"], 2, &["detla", "delta"]);
    fails(path, &["bench", "--seeds", "1"], 2, &["noise floor"]);
    fails(path, &["fit"], 4, &["ml-100k"]);
}
