//! The binary on files: exit codes, messages, shards, bad tables.

use std::path::Path;
use std::process::{Command, Output};

use common::testing::{Expect, bad_tables};
use tempfile::TempDir;

/// Runs the binary in `folder` with an empty environment for models.
pub(crate) fn run(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().unwrap()
}

pub(crate) fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-ensemble"));
    command.args(args).current_dir(folder).env("SEPTET_CACHE", folder.join("cache"));
    command
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn ok(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

#[track_caller]
fn fails(folder: &Path, args: &[&str], code: i32, pieces: &[&str]) {
    let output = run(folder, args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    for piece in pieces {
        assert!(message.contains(piece), "{args:?}: no {piece:?} in {message}");
    }
    assert!(output.stdout.is_empty(), "{args:?}: {}", stdout(&output));
}

/// Three good workers and a bad one; the truth of item i is i mod 3.
fn votes(items: usize) -> String {
    let mut text = "item,worker,label\n".to_owned();
    for item in 0..items {
        let truth = item % 3;
        for (worker, period, at) in [("a", 10, 3), ("b", 7, 1), ("c", 5, 2)] {
            let label = if item % period == at { (truth + 1) % 3 } else { truth };
            text.push_str(&format!("i{item},{worker},{label}\n"));
        }
        text.push_str(&format!("i{item},bad,{}\n", (item / 3) % 3));
    }
    text
}

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn fit_writes_a_model_that_predict_applies() {
    let folder = folder(&[("votes.csv", &votes(60))]);
    let path = folder.path();
    let text = ok(path, &["fit", "votes.csv", "--labels", "fitted.csv"]);
    assert!(text.contains(" bad |"), "{text}");
    let model: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path.join("model.json")).unwrap()).unwrap();
    let workers = model["attributes"][0]["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 4);
    let weight = |index: usize| workers[index]["weight"].as_f64().unwrap();
    assert!(weight(3) < weight(2) && weight(2) < weight(0), "{workers:?}");
    ok(path, &["predict", "votes.csv", "--model", "model.json"]);
    let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    assert_eq!(read("labels.csv"), read("fitted.csv"));
    assert_eq!(read("labels.csv").lines().count(), 61);
}

fn model(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path.join("model.json")).unwrap()).unwrap()
}

/// The label column of labels.csv by item.
fn labels_of(path: &Path, file: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(path.join(file)).unwrap();
    let fields = |line: &str| -> (String, String) {
        let fields: Vec<&str> = line.split(',').collect();
        (fields[1].to_owned(), fields[2].to_owned())
    };
    text.lines().skip(1).map(fields).collect()
}

#[test]
fn predict_applies_the_confusion_matrices_of_dawid_skene() {
    // `shifted` names the next label every time: worthless as a vote, perfect as evidence.
    let mut text = votes(90);
    (0..90).for_each(|item| text.push_str(&format!("i{item},shifted,{}\n", (item % 3 + 1) % 3)));
    let alone = "item,worker,label\nx,shifted,1\ny,shifted,0\nz,shifted,2\nu,unknown,1\n";
    let folder = folder(&[("votes.csv", &text), ("alone.csv", alone)]);
    let path = folder.path();
    let method = ["--set", "aggregate.method=dawid_skene"];
    ok(path, &[&["fit", "votes.csv", "--labels", "fitted.csv"], &method[..]].concat());
    let attribute = &model(path)["attributes"][0];
    assert_eq!(attribute["class_prior"].as_array().unwrap().len(), 3);
    let rows = attribute["workers"][4]["confusion"].as_array().unwrap();
    for (truth, row) in rows.iter().enumerate() {
        let row: Vec<f64> = row.as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect();
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{row:?}");
        assert!(row[(truth + 1) % 3] > 0.9, "{row:?}");
    }
    ok(path, &["predict", "votes.csv", "--model", "model.json"]);
    assert_eq!(labels_of(path, "labels.csv"), labels_of(path, "fitted.csv"));
    ok(path, &["predict", "alone.csv", "--model", "model.json"]);
    let expected = [("u", "1"), ("x", "0"), ("y", "2"), ("z", "1")];
    let labels = labels_of(path, "labels.csv");
    assert_eq!(labels.iter().map(|(a, b)| (&a[..], &b[..])).collect::<Vec<_>>(), expected);
    // A damaged matrix is refused.
    let damaged = std::fs::read_to_string(path.join("model.json")).unwrap();
    let damaged = damaged.replacen("\"class_prior\": [", "\"class_prior\": [ 0.5,", 1);
    std::fs::write(path.join("model.json"), damaged).unwrap();
    fails(path, &["predict", "alone.csv", "--model", "model.json"], 3, &["confusion matrices"]);
}

#[test]
fn new_votes_continue_from_an_earlier_model() {
    let all = votes(60);
    let cut = all.lines().take(1 + 40 * 4).collect::<Vec<_>>().join("\n");
    let header = all.lines().take(1);
    let rest = header.chain(all.lines().skip(1 + 40 * 4)).collect::<Vec<_>>().join("\n");
    let folder = folder(&[("old.csv", &cut), ("new.csv", &rest), ("all.csv", &all)]);
    let path = folder.path();
    ok(path, &["fit", "all.csv", "--labels", "afresh.csv"]);
    let afresh = model(path)["attributes"][0]["rounds"].as_u64().unwrap();
    ok(path, &["fit", "old.csv"]);
    let more = ["fit", "old.csv", "new.csv", "--start", "model.json", "--labels", "more.csv"];
    ok(path, &more);
    assert_eq!(labels_of(path, "more.csv"), labels_of(path, "afresh.csv"));
    let continued = model(path)["attributes"][0]["rounds"].as_u64().unwrap();
    assert!(continued <= afresh, "{continued} rounds, {afresh} from the start");
}

#[test]
fn fit_reports_what_each_worker_costs_and_calibrates_confidence() {
    let mut gold = "item,truth\n".to_owned();
    (0..30).for_each(|item| gold.push_str(&format!("i{item},{}\n", item % 3)));
    let folder = folder(&[("votes.csv", &votes(60)), ("gold.csv", &gold)]);
    let path = folder.path();
    let fit = ["fit", "votes.csv", "--gold", "gold.csv", "--label-cost"];
    let text = ok(path, &fit);
    assert!(text.contains("calls saved") && text.contains(" bad |"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&ok(path, &[&fit[..], &["--json"]].concat())).unwrap();
    let dropped = json["label_cost"][""].as_array().unwrap();
    assert_eq!(dropped.len(), 4);
    assert!(dropped.iter().all(|row| row["votes_saved"] == 60), "{dropped:?}");
    assert!(dropped.iter().all(|row| row["accuracy_lost"].is_f64()), "{dropped:?}");
    assert!(model(path)["attributes"][0].get("calibration").is_none());
    // Labels stay, confidences move by one exponent, and `predict` applies it.
    ok(path, &["fit", "votes.csv", "--labels", "plain.csv"]);
    let calibrate = ["--set", "aggregate.calibrate=true"];
    ok(path, &[&["fit", "votes.csv", "--labels", "scaled.csv"], &calibrate[..]].concat());
    let exponent = model(path)["attributes"][0]["calibration"].as_f64().unwrap();
    assert!((0.01..=2.0).contains(&exponent), "{exponent}");
    assert_eq!(labels_of(path, "plain.csv"), labels_of(path, "scaled.csv"));
    let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    assert_ne!(read("plain.csv"), read("scaled.csv"));
    ok(path, &["predict", "votes.csv", "--model", "model.json"]);
    assert_eq!(read("labels.csv"), read("scaled.csv"));
}

#[test]
fn shared_accuracies_shrink_small_attributes() {
    // `c` is right on 60 items of the large attribute and wrong on the 2 items of the small one.
    let mut text = "attribute,item,worker,label\n".to_owned();
    for item in 0..60 {
        for (worker, wrong) in [("a", item % 10 == 0), ("b", item % 7 == 0), ("c", false)] {
            let label = (item + usize::from(wrong)) % 2;
            text.push_str(&format!("large,i{item},{worker},{label}\n"));
        }
    }
    for item in 0..2 {
        for (worker, label) in [("a", item), ("b", item), ("c", 1 - item)] {
            text.push_str(&format!("small,i{item},{worker},{label}\n"));
        }
    }
    let folder = folder(&[("votes.csv", &text)]);
    let accuracy = |shared: &str| {
        ok(folder.path(), &["fit", "votes.csv", "--set", &format!("aggregate.shared={shared}")]);
        let model = model(folder.path());
        assert_eq!(model["attributes"][1]["name"], "small");
        model["attributes"][1]["workers"][2]["accuracy"].as_f64().unwrap()
    };
    assert_eq!(accuracy("false"), 0.0);
    assert!(accuracy("true") > 0.3, "{}", accuracy("true"));
}

#[test]
fn shards_merge_into_the_unsharded_labels() {
    let folder = folder(&[("votes.csv", &votes(60))]);
    let path = folder.path();
    ok(path, &["fit", "votes.csv"]);
    ok(path, &["predict", "votes.csv", "--model", "model.json"]);
    let shard = |part: &str| {
        ["predict", "votes.csv", "--model", "model.json", "--labels", "parts", "--shard", part]
            .map(str::to_owned)
    };
    for part in ["1/3", "3/3"] {
        ok(path, &shard(part).each_ref().map(String::as_str));
    }
    fails(path, &["merge", "parts", "--labels", "m.csv"], 3, &["2 of 3 shards", "2/3"]);
    ok(path, &shard("2/3").each_ref().map(String::as_str));
    let again = ok(path, &shard("2/3").each_ref().map(String::as_str));
    assert!(again.contains("done before"), "{again}");
    ok(path, &["merge", "parts", "--labels", "m.csv"]);
    let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    assert_eq!(read("m.csv"), read("labels.csv"));
    // Parts of other votes are not mixed in.
    std::fs::write(path.join("votes.csv"), votes(30)).unwrap();
    ok(path, &shard("1/3").each_ref().map(String::as_str));
    fails(path, &["merge", "parts"], 3, &["another run"]);
}

#[test]
fn long_wide_jsonl_and_parquet_votes_give_the_same_labels() {
    let folder = folder(&[
        ("long.csv", "item,worker,label,attribute\n1,a,x,q\n1,b,y,q\n1,c,y,q\n2,a,x,q\n2,c,x,q\n"),
        ("wide.csv", "item,attribute,a,b,c\n1,q,x,y,y\n2,q,x,,x\n"),
        (
            "wide.jsonl",
            "{\"item\":1,\"attribute\":\"q\",\"a\":\"x\",\"b\":\"y\",\"c\":\"y\"}\n\
             {\"item\":2,\"attribute\":\"q\",\"a\":\"x\",\"b\":null,\"c\":\"x\"}\n",
        ),
        ("other.csv", "task,who,answer,attribute\n1,a,x,q\n1,b,y,q\n1,c,y,q\n2,a,x,q\n2,c,x,q\n"),
    ]);
    let path = folder.path();
    let labels = |args: &[&str]| {
        let mut all = vec!["predict"];
        all.extend(args);
        ok(path, &all);
        std::fs::read_to_string(path.join("labels.csv")).unwrap()
    };
    let long = labels(&["long.csv"]);
    assert!(long.contains("q,1,y") && long.contains("q,2,x"), "{long}");
    for file in ["wide.csv", "wide.jsonl"] {
        assert_eq!(labels(&[file]), long, "{file}");
    }
    let mapped = ["--set", "input.item=task", "--set", "input.worker=who"];
    let mapped = [&["other.csv"], &mapped[..], &["--set", "input.vote=answer"]].concat();
    assert_eq!(labels(&mapped), long);
}

#[test]
fn unknown_labels_follow_the_policy() {
    let folder = folder(&[
        (
            "schema.toml",
            "[[attributes]]\nname=\"q\"\nlabels=[\"Red\", {name=\"Blue\", synonyms=[\"navy\"]}]\n",
        ),
        ("votes.csv", "item,worker,label\n1,a,red\n1,b,Navy\n1,c,pink\n"),
    ]);
    let path = folder.path();
    let fit = ["fit", "votes.csv", "--attributes", "schema.toml"];
    fails(path, &fit, 3, &["votes.csv", "row 4", "column label", "pink", "Red, Blue"]);
    let mut lenient = fit.to_vec();
    lenient.extend(["--set", "input.unknown_labels=missing", "--json"]);
    let text = ok(path, &lenient);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["input"]["unknown_labels"], 1);
    assert_eq!(json["model"]["attributes"][0]["labels"], serde_json::json!(["Blue", "Red"]));
}

#[test]
fn eval_compares_methods_with_gold() {
    let mut gold = "item,truth\n".to_owned();
    (0..60).for_each(|item| gold.push_str(&format!("i{item},{}\n", item % 3)));
    let folder = folder(&[("votes.csv", &votes(60)), ("gold.csv", &gold)]);
    let text = ok(folder.path(), &["eval", "votes.csv", "--gold", "gold.csv", "--json"]);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let accuracy = |method: &str| {
        let row = rows.iter().find(|row| row["method"] == method).unwrap();
        row["accuracy"].as_f64().unwrap()
    };
    assert!(accuracy("IWMV") > accuracy("worker a"), "{rows:?}");
    assert_eq!(accuracy("worker a"), 0.9);
    fails(folder.path(), &["eval", "votes.csv", "--gold", "votes.csv"], 3, &["column truth"]);
}

#[test]
fn usage_errors_exit_2_and_name_the_nearest_key() {
    let folder = folder(&[("votes.csv", &votes(3))]);
    let path = folder.path();
    fails(path, &["fit", "votes.csv", "--set", "aggregate.metod=mv"], 2, &["aggregate.method"]);
    fails(path, &["fit"], 2, &["VOTES"]);
    fails(path, &["predict", "votes.csv", "--shard", "0/3"], 2, &["i/n"]);
    fails(path, &["predict", "votes.csv", "--shard", "1/3"], 2, &["--model"]);
    fails(path, &["fit", "votes.txt"], 2, &["extension"]);
    fails(path, &["fit", "absent.csv"], 6, &["absent.csv"]);
    let text = ok(path, &["config"]);
    assert!(text.contains("label.allowed_failures = 0.05"), "{text}");
    let schema = ok(path, &["config", "--schema"]);
    assert!(serde_json::from_str::<serde_json::Value>(&schema).unwrap()["properties"].is_object());
}

#[test]
fn bad_tables_exit_3_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut refused = 0;
    for table in bad_tables() {
        std::fs::write(path.join(table.file), &table.bytes).unwrap();
        for verb in ["fit", "predict"] {
            let output = run(path, &[verb, table.file]);
            let message = stderr(&output);
            let code = output.status.code();
            match &table.expect {
                Expect::Refused(pieces) => {
                    refused += 1;
                    assert_eq!(code, Some(3), "{verb} {}: {message}", table.file);
                    for piece in pieces {
                        assert!(message.contains(piece), "{verb} {}: {message}", table.file);
                    }
                }
                // Other columns are not read; a missing label is no vote; rows may repeat.
                Expect::Rows(_) | Expect::Unusable { .. } => {
                    let empty_id = code == Some(3) && message.contains("row ");
                    assert!(code == Some(0) || empty_id, "{verb} {}: {message}", table.file);
                }
            }
        }
        std::fs::remove_file(path.join(table.file)).unwrap();
    }
    assert!(refused >= 40, "{refused}");
}
