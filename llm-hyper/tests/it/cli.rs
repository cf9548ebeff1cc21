//! The binary on files: fit, generate by three kinds of LLM, predict, explain, eval, warm.

use std::path::Path;
use std::process::{Command, Output};

use common::rng::Seed;
use common::testing::endpoint::{Call, MockEndpoint, Reply};
use common::testing::{Expect, asset_or_skip, bad_tables};
use llm_hyper::data::synth;
use tempfile::TempDir;

fn binary(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-hyper"));
    command.args(args).current_dir(folder);
    command
}

/// A run with an answer cache of its own.
fn run(folder: &Path, args: &[&str]) -> Output {
    binary(folder, args).env("SEPTET_CACHE", folder.join("cache")).output().unwrap()
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
pub(crate) fn ok(folder: &Path, args: &[&str]) -> String {
    succeeds(&run(folder, args))
}

/// A run with the cache of the environment, where models are.
#[track_caller]
pub(crate) fn shared_cache(folder: &Path, args: &[&str]) -> String {
    succeeds(&binary(folder, args).output().unwrap())
}

#[track_caller]
pub(crate) fn fails(folder: &Path, args: &[&str], code: i32, pieces: &[&str]) {
    let output = run(folder, args);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    for piece in pieces {
        assert!(message.contains(piece), "{args:?}: no {piece:?} in {message}");
    }
}

/// Catalogue, log, new ads, their impressions and users of a small synthetic world.
pub(crate) fn world() -> TempDir {
    let size = synth::Size { ads: 20, users: 200, impressions: 120 };
    let data = synth::generate(size, Seed::new(6)).unwrap().data;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("schema.toml", toml::to_string(&data.schema).unwrap());
    let names: Vec<&str> = data.schema.features.iter().map(|f| f.name.as_str()).collect();
    for (file, ads) in [("ads.csv", 0..16), ("new.csv", 16..20)] {
        let mut text = "id,title,description,start\n".to_owned();
        for ad in &data.ads[ads] {
            text.push_str(&format!("{},{},,{}\n", ad.id, ad.title, ad.start.unwrap()));
        }
        write(file, text);
    }
    let header = format!("ad,user,time,clicked,{}\n", names.join(","));
    let (mut old, mut new) = (header.clone(), header);
    for row in 0..data.impressions.len() {
        let i = &data.impressions;
        let values: Vec<String> = i.features.row(row).iter().map(f32::to_string).collect();
        let clicked = u8::from(i.clicked[row]);
        let line = format!(
            "ad{:03},u{},{},{clicked},{}\n",
            i.ad[row],
            i.user[row],
            i.time[row],
            values.join(",")
        );
        if i.ad[row] < 16 { &mut old } else { &mut new }.push_str(&line);
    }
    write("log.csv", old);
    write("new_log.csv", new);
    let mut users = format!("user,{}\n", names.join(","));
    for row in 0..30 {
        let values: Vec<String> =
            data.impressions.features.row(row).iter().map(f32::to_string).collect();
        users.push_str(&format!("u{row},{}\n", values.join(",")));
    }
    write("users.csv", users);
    folder
}

/// Weights as a model gives them that has read the ad: 1 for every taste that it names.
pub(crate) fn answer(call: &Call) -> String {
    let messages = call.body["messages"].as_array().cloned().unwrap_or_default();
    let text =
        |at: usize| messages.get(at).and_then(|m| m["content"].as_str()).unwrap_or("").to_owned();
    let system = text(0);
    let asked: Vec<&str> = system
        .split("Features:\n")
        .nth(1)
        .unwrap_or("")
        .lines()
        .filter_map(|line| line.split(": ").next())
        .collect();
    let ad =
        (0..messages.len()).rev().map(text).find(|t| t.contains("A new ad.")).unwrap_or_default();
    let weights: Vec<String> = asked
        .iter()
        .map(|name| {
            let named = name.strip_prefix("taste:").is_some_and(|taste| ad.contains(taste));
            format!("\"{name}\": {}", if named { "1" } else { "0.05" })
        })
        .collect();
    format!(
        "{{\"reasoning\": {{\"{}\": \"+ because\"}}, \"weights\": {{{}}}}}",
        asked[0],
        weights.join(", ")
    )
}

pub(crate) const FIT: [&str; 5] = ["fit", "ads.csv", "log.csv", "--set", "library.c=[0.3]"];

#[test]
fn files_go_from_log_to_scores_by_a_mock_endpoint_and_its_recording() {
    let folder = world();
    let path = folder.path();
    let text = ok(path, &FIT);
    assert!(text.contains("16 ads with trained weights (C = 0.3), 0 left out"), "{text}");
    let endpoint = MockEndpoint::start(|call| Reply::chat(&answer(call)));
    let spec = endpoint.spec();
    let generate = ["generate", "new.csv", "--llm", &spec, "--record", "recorded.jsonl"];
    let text = ok(path, &generate);
    assert!(text.contains("4 written by the LLM") && text.contains("0 of 64 weights"), "{text}");
    // 16 features are one batch of the default size.
    assert_eq!(endpoint.calls(), 4);
    let artefacts = std::fs::read_to_string(path.join("artefacts.jsonl")).unwrap();
    assert!(artefacts.contains("because") && artefacts.lines().count() == 4);

    // The recording gives the same weights without a network.
    drop(endpoint);
    ok(
        path,
        &[
            "generate",
            "new.csv",
            "--llm",
            "replay:recorded.jsonl",
            "--offline",
            "--artefacts",
            "again.jsonl",
        ],
    );
    let again = std::fs::read_to_string(path.join("again.jsonl")).unwrap();
    let strip = |text: &str, llm: &str| text.replace(llm, "LLM");
    assert_eq!(strip(&again, "replay:recorded.jsonl"), strip(&artefacts, &spec));

    let text =
        ok(path, &["eval", "new.csv", "new_log.csv", "--json", "--set", "bench.resamples=20"]);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let auc = |method: &str| {
        let row = rows.iter().find(|r| r["method"] == method && r["metric"] == "auc per ad");
        row.unwrap()["value"].as_f64().unwrap()
    };
    assert!(auc("artefacts") > auc("LR_cold (median)") + 0.05, "{rows:?}");

    let text = ok(path, &["predict", "users.csv", "--top", "2"]);
    assert!(text.contains("60 scores of 30 users and 4 ads"), "{text}");
    let scores = std::fs::read_to_string(path.join("scores.csv")).unwrap();
    assert!(scores.starts_with("user,ad,probability\nu0,ad0"), "{scores}");

    let text = ok(path, &["explain", "--ad", "ad017", "--html", "ad.html"]);
    assert!(
        text.contains("Demonstration ad0") && text.contains("Calibration: intercept"),
        "{text}"
    );
    let page = std::fs::read_to_string(path.join("ad.html")).unwrap();
    assert!(page.contains("Served weights") && !page.contains("<script"));
    fails(path, &["explain", "--ad", "nobody"], 2, &["nobody", "ad016"]);

    let text = ok(path, &["warm", "new.csv", "new_log.csv"]);
    assert!(text.contains("| ad016 |") && text.contains("120"), "{text}");
    let text =
        ok(path, &["eval", "new.csv", "new_log.csv", "--artefacts", "warmed.jsonl", "--json"]);
    assert!(text.contains("auc per ad"));

    // Other features than the artefacts' refuse to serve.
    let schema = std::fs::read_to_string(path.join("schema.toml")).unwrap();
    std::fs::write(path.join("schema.toml"), schema.replace("std = 1.0", "std = 2.0")).unwrap();
    ok(path, &FIT);
    fails(path, &["predict", "users.csv"], 3, &["artefacts.jsonl", "generate the artefacts again"]);
}

#[test]
fn useless_answers_are_counted_and_fall_back_or_fail() {
    let folder = world();
    let path = folder.path();
    ok(path, &FIT);
    // Prose for one ad, a value out of range for another, injected text in the third's answer.
    let endpoint = MockEndpoint::start(|call| {
        let text = call.body.to_string();
        let good = answer(call);
        let ad = text.split("A new ad.").nth(1).unwrap_or("");
        Reply::chat(&match ad.len() % 3 {
            0 => "I am a teapot.".to_owned(),
            1 => good.replace("0.05", "1e999"),
            _ => good.replace("0.05", "7"),
        })
    });
    let generate = ["generate", "new.csv", "--llm", &endpoint.spec()];
    let lenient = [&generate[..], &["--set", "writer.allowed_fallback=1.0", "--json"]].concat();
    let text = ok(path, &lenient);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["tally"]["repairs"], 4);
    assert!(json["tally"]["unusable"].as_u64().unwrap() >= 40, "{text}");
    assert_eq!(json["tally"]["weights"], 64);
    let strict = [&generate[..], &["--set", "writer.allowed_fallback=0.1"]].concat();
    fails(path, &strict, 5, &["had no usable answer", "--dry-run"]);
}

#[test]
fn an_endpoint_that_is_down_exits_75_or_falls_back() {
    let folder = world();
    let path = folder.path();
    ok(path, &FIT);
    let endpoint = MockEndpoint::start(|_| Reply::json(503, &serde_json::json!({})));
    let spec = endpoint.spec();
    let patience = ["--set", "writer.attempts=2", "--set", "writer.backoff_ms=1"];
    let generate = [&["generate", "new.csv", "--llm", &spec][..], &patience].concat();
    fails(path, &generate, 75, &["run the same command again"]);
    let fallback = [&generate[..], &["--set", "writer.fallback_on_outage=true"]].concat();
    let text = ok(path, &fallback);
    assert!(text.contains("0 blends, 4 kNN fallbacks"), "{text}");
}

#[test]
fn thirty_percent_faults_change_no_artefact() {
    let folder = world();
    let path = folder.path();
    ok(path, &FIT);
    let small = [
        "--set",
        "writer.batch=4",
        "--set",
        "writer.backoff_ms=1",
        "--set",
        "writer.attempt_seconds=2",
    ];
    let artefacts = |faults: f64, file: &str| {
        let endpoint = MockEndpoint::faulty(faults, 3, answer);
        let spec = endpoint.spec();
        let args =
            [&["generate", "new.csv", "--llm", &spec, "--artefacts", file][..], &small].concat();
        ok(path, &args);
        std::fs::read_to_string(path.join(file)).unwrap().replace(&spec, "LLM")
    };
    assert_eq!(artefacts(0.0, "a.jsonl"), artefacts(0.3, "b.jsonl"));
}

#[test]
fn a_local_model_writes_ratings_and_shows_its_prompts() {
    if asset_or_skip("smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf").is_none() {
        return;
    }
    let folder = world();
    let path = folder.path();
    ok(path, &FIT);
    let local = |args: &[&str]| shared_cache(path, args);
    let spec = "gguf:smollm2-135m-instruct";
    let text = local(&["generate", "new.csv", "--llm", spec, "--dry-run"]);
    assert!(text.contains("nothing was asked") && text.contains("people who like yoga: high"));
    assert!(!text.contains("estimated"), "{text}");
    std::fs::write(path.join("one.csv"), "id,title\nx,classic chess set\n").unwrap();
    let args = ["generate", "one.csv", "--llm", spec, "--json", "--set", "writer.mode=likelihood"];
    let json: serde_json::Value = serde_json::from_str(&local(&args)).unwrap();
    assert_eq!(json["tally"]["unusable"], 0);
    assert!(json["tally"]["tokens_saved"].as_u64().unwrap() > 0);
    let artefact = std::fs::read_to_string(path.join("artefacts.jsonl")).unwrap();
    let artefact: serde_json::Value = serde_json::from_str(artefact.trim()).unwrap();
    let raw: Vec<f64> =
        artefact["raw"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    // Among the twelve tastes, chess (feature 5) has the likeliest audience of a chess set.
    let best = (0..12).max_by(|&a, &b| raw[a].total_cmp(&raw[b])).unwrap();
    assert_eq!(best, 5, "{raw:?}");
}

#[test]
fn usage_errors_name_the_key_and_bad_files_their_place() {
    let folder = world();
    let path = folder.path();
    fails(path, &["fit", "ads.csv", "log.csv", "--set", "library.fold=3"], 2, &["library.folds"]);
    fails(path, &["fit", "ads.csv", "log.csv", "--set", "library.folds=1"], 2, &["at least 2"]);
    fails(path, &["fit", "ads.csv", "ads.csv"], 3, &["column ad"]);
    fails(path, &["fit", "new.csv", "log.csv"], 3, &["log.csv", "row 2", "catalogue"]);
    fails(path, &["generate", "new.csv"], 6, &["library.json"]);
    let log = std::fs::read_to_string(path.join("log.csv")).unwrap();
    let mut lines: Vec<String> = log.lines().map(str::to_owned).collect();
    let mut cells: Vec<&str> = lines[3].split(',').collect();
    cells[3] = "maybe";
    lines[3] = cells.join(",");
    std::fs::write(path.join("bad.csv"), lines.join("\n")).unwrap();
    fails(
        path,
        &["fit", "ads.csv", "bad.csv"],
        3,
        &["bad.csv", "row 4", "column clicked", "maybe"],
    );
    std::fs::write(path.join("schema.toml"), "[[features]]\nname = \"a\"\ndescription = \"\"\n")
        .unwrap();
    fails(path, &["fit", "ads.csv", "log.csv"], 3, &["schema.toml", "no description"]);
    let text = ok(path, &["config"]);
    assert!(text.contains("retrieval.k = 5"), "{text}");
    let schema = ok(path, &["config", "--schema"]);
    assert!(serde_json::from_str::<serde_json::Value>(&schema).unwrap()["properties"].is_object());
}

#[test]
fn bad_tables_exit_3_with_their_place() {
    let folder = world();
    let path = folder.path();
    let mut refused = 0;
    for table in bad_tables() {
        std::fs::write(path.join(table.file), &table.bytes).unwrap();
        let columns = ["--set", "input.ad_id=item", "--set", "input.title=label"];
        let args = [&["fit", table.file, "log.csv"][..], &columns].concat();
        let output = run(path, &args);
        let message = String::from_utf8_lossy(&output.stderr);
        if let Expect::Refused(pieces) = &table.expect {
            refused += 1;
            assert_eq!(output.status.code(), Some(3), "{}: {message}", table.file);
            for piece in pieces {
                assert!(message.contains(piece), "{}: {message}", table.file);
            }
        } else {
            // Readable, but no catalogue of these ads.
            assert_eq!(output.status.code(), Some(3), "{}: {message}", table.file);
        }
        std::fs::remove_file(path.join(table.file)).unwrap();
    }
    assert!(refused >= 40, "{refused}");
}
