//! The verbs on files of a user.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::rng::Seed;
use crab::data::synthetic;

fn crab(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_crab"))
        .args(args)
        .args(["--threads", "1", "-q"])
        .current_dir(folder)
        .output()
        .unwrap()
}

fn ok(folder: &Path, args: &[&str]) -> String {
    let output = crab(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn events(folder: &Path) {
    let data = synthetic(40, 80, 4, Seed::new(2));
    let mut text = "user,item,time\n".to_owned();
    for case in &data.test {
        let user = case.user.unwrap();
        for (time, item) in case.history.iter().chain([&case.target]).enumerate() {
            text.push_str(&format!("u{user},i{item},{time}\n"));
        }
    }
    fs::write(folder.join("events.csv"), text).unwrap();
}

const SMALL: [&str; 16] = [
    "--set",
    "tokenizer.codes=[6,6]",
    "--set",
    "generator.width=16",
    "--set",
    "generator.heads=2",
    "--set",
    "generator.inner=32",
    "--set",
    "train.epochs=2",
    "--set",
    "fine_tune.epochs=1",
    "--set",
    "rebalance.levels=[0]",
    "--set",
    "rebalance.ratio=0.4",
];

#[test]
fn fit_rebalance_predict_and_eval_of_ones_own_data() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    events(folder);
    let with = |args: &[&str]| ok(folder, &[args, &SMALL].concat());
    assert!(with(&["fit", "events.csv"]).contains("2 epochs"));
    let first = fs::read(folder.join("recommender/index.json")).unwrap();
    let answer = with(&["rebalance", "--model", "recommender", "--events", "events.csv", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert!(answer["moved"].as_u64().unwrap() > 0, "{answer}");
    assert_eq!(answer["before"]["unique"], answer["after"]["unique"]);
    assert_ne!(fs::read(folder.join("rebalanced/index.json")).unwrap(), first);
    assert!(
        fs::read_to_string(folder.join("rebalanced/migration.csv"))
            .unwrap()
            .contains("item,old,new")
    );
    for model in ["recommender", "rebalanced"] {
        with(&[
            "predict",
            "events.csv",
            "--model",
            model,
            "--recommendations",
            "r.csv",
            "--top",
            "4",
        ]);
        let rows = fs::read_to_string(folder.join("r.csv")).unwrap();
        assert!(rows.starts_with("user,rank,item,log_probability\n"), "{rows}");
        let users: std::collections::BTreeSet<&str> =
            rows.lines().skip(1).map(|row| row.split(',').next().unwrap()).collect();
        assert_eq!(rows.lines().count() - 1, 4 * users.len());
        let table = with(&["eval", "events.csv", "--model", model]);
        assert!(table.contains("generator") && table.contains("Markov"), "{table}");
    }
    // the same seed gives the same files
    let again = tempfile::tempdir().unwrap();
    events(again.path());
    ok(again.path(), &[&["fit", "events.csv"], &SMALL[..]].concat());
    assert_eq!(fs::read(again.path().join("recommender/index.json")).unwrap(), first);
}

/// TIGER's encoder–decoder goes through the same verbs, LoRA included.
#[test]
fn an_encoder_decoder_is_fitted_split_and_asked() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    events(folder);
    let tiger = [
        "--set",
        "generator.architecture=encoder_decoder",
        "--set",
        "generator.head_width=12",
        "--set",
        "stage2.lora_rank=2",
    ];
    let with = |args: &[&str]| ok(folder, &[args, &SMALL[..], &tiger[..]].concat());
    with(&["fit", "events.csv"]);
    with(&["rebalance", "--model", "recommender", "--events", "events.csv"]);
    with(&["predict", "events.csv", "--model", "rebalanced", "--recommendations", "r.csv"]);
    let rows = fs::read_to_string(folder.join("r.csv")).unwrap();
    assert_eq!((rows.lines().count() - 1) % 10, 0);
    assert!(with(&["eval", "events.csv", "--model", "rebalanced"]).contains("generator"));
}

#[test]
fn audit_and_rebalance_of_a_bare_table() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let rows: Vec<String> = (0..60)
        .map(|i| format!("\"{i}\": [\"<a_{}>\", \"<b_{}>\", \"<c_{}>\"]", i % 4, i % 7, i % 11))
        .collect();
    fs::write(folder.join("index.json"), format!("{{{}}}", rows.join(", "))).unwrap();
    let counts: String = (0..60).map(|i| format!("{i},{}\n", 200 / (i + 1))).collect();
    fs::write(folder.join("counts.csv"), format!("item,count\n{counts}")).unwrap();
    let report = ok(folder, &["audit", "index.json", "--counts", "counts.csv", "--html", "a.html"]);
    assert!(report.contains("60 items") && report.contains("gini"), "{report}");
    assert!(fs::read_to_string(folder.join("a.html")).unwrap().contains("Load of the codes"));
    let said = ok(
        folder,
        &[
            "rebalance",
            "--sids",
            "index.json",
            "--counts",
            "counts.csv",
            "--set",
            "rebalance.ratio=0.3",
        ],
    );
    assert!(said.contains("2 tokens split"), "{said}");
    let after = ok(folder, &["audit", "rebalanced/index.json", "--counts", "counts.csv", "--json"]);
    let after: serde_json::Value = serde_json::from_str(&after).unwrap();
    assert_eq!(after["unique"], 60);
}

#[test]
fn bad_files_are_named_and_exit_with_3() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("good.json"), "{\"1\": [1, 2], \"2\": [1, 3]}").unwrap();
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    let bad_sids = [
        "",
        "[]",
        "{",
        "{}",
        "{\"1\": 3}",
        "{\"1\": []}",
        "{\"1\": [\"<a_>\"]}",
        "{\"1\": [1, 2], \"2\": [1]}",
        "{\"1\": [-1, 2]}",
        "{\"1\": [99999999, 2]}",
    ];
    for (number, text) in bad_sids.iter().enumerate() {
        write("bad.json", text);
        let output = crab(folder, &["audit", "bad.json"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "case {number}: {said}");
        assert!(said.contains("bad.json") && said.starts_with("error: "), "case {number}: {said}");
    }
    let bad_counts = [
        "",
        "item,count\n",
        "item,number\n1,2\n",
        "item,count\n7,1\n",
        "item,count\n1,-2\n",
        "item,count\n1,many\n",
    ];
    for (number, text) in bad_counts.iter().enumerate() {
        write("counts.csv", text);
        let output = crab(folder, &["audit", "good.json", "--counts", "counts.csv"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "case {number}: {said}");
        assert!(said.contains("counts.csv"), "case {number}: {said}");
    }
    let bad_events = [
        "",
        "user,item,time\n",
        "user,item\na,b\n",
        "user,item,time\n,b,1\n",
        "user,item,time\na,b,soon\n",
    ];
    for (number, text) in bad_events.iter().enumerate() {
        write("events.csv", text);
        let output = crab(folder, &["fit", "events.csv"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "case {number}: {said}");
        assert!(said.contains("events.csv"), "case {number}: {said}");
    }
    write("events.csv", "user,item,time\na,b,1\n");
    write("items.csv", "item,text\nc,words\n");
    let output = crab(folder, &["fit", "events.csv", "--items", "items.csv"]);
    assert_eq!(output.status.code(), Some(3));
    for (args, code) in [
        (&["predict", "events.csv", "--model", "nowhere"][..], 4),
        (&["audit", "absent.json"], 6),
        (&["rebalance", "--sids", "good.json"], 2),
        (&["config", "--set", "rebalance.ratoi=0.2"], 2),
        (&["config", "--set", "tokenizer.codes=[]"], 2),
    ] {
        let output = crab(folder, args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    }
}

/// The commands of the README's section on one's own data.
#[test]
fn the_readmes_commands_run_on_the_sample() {
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sample = folder.path().join("sample");
    fs::create_dir(&sample).unwrap();
    for entry in fs::read_dir(root.join("sample")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, sample.join(path.file_name().unwrap())).unwrap();
    }
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let commands: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("crab "))
        .filter(|line| line.contains("sample/"))
        .collect();
    assert_eq!(commands.len(), 3, "{commands:?}");
    for command in commands {
        ok(folder.path(), &command.split_whitespace().collect::<Vec<_>>());
    }
    let rows = fs::read_to_string(folder.path().join("recommendations.csv")).unwrap();
    assert_eq!(rows.lines().count(), 1 + 60 * 10);
}

#[test]
fn fit_takes_the_semantic_ids_of_another_system() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    events(folder);
    let codes = |i: usize| format!("\"i{i}\": [{}, {}]", i % 5, i % 8);
    let rows: Vec<String> = (0..40).map(codes).collect();
    fs::write(folder.join("sids.json"), format!("{{{}}}", rows.join(", "))).unwrap();
    ok(folder, &[&["fit", "events.csv", "--sids", "sids.json"], &SMALL[..]].concat());
    let index = fs::read_to_string(folder.join("recommender/index.json")).unwrap();
    assert!(index.contains("\"i13\": [\"<a_3>\", \"<b_5>\"]"), "{index}");
    fs::write(folder.join("sids.json"), "{\"i1\": [1, 2]}").unwrap();
    let output = crab(folder, &["fit", "events.csv", "--sids", "sids.json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("sids.json") && said.contains("i0"), "{said}");
}

/// Kills `fit` at random moments, some of them inside the write of a checkpoint, and lets the last
/// one finish: the files are those of a run that nobody disturbed.
#[test]
fn a_killed_fit_goes_on_to_the_same_bytes() {
    let kills: u64 =
        std::env::var("SEPTET_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let args = [&["fit", "events.csv"], &SMALL[..], &["--set", "train.epochs=12"]].concat();
    let whole = tempfile::tempdir().unwrap();
    events(whole.path());
    let clock = std::time::Instant::now();
    ok(whole.path(), &args);
    let took = clock.elapsed().as_millis() as u64;
    let files = |folder: &Path| {
        let mut all = std::collections::BTreeMap::new();
        let mut open = vec![folder.join("recommender/training")];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => open.push(path),
                    false => drop(all.insert(path.clone(), fs::read(&path).unwrap())),
                }
            }
        }
        let name = |(path, bytes): (std::path::PathBuf, Vec<u8>)| {
            (path.strip_prefix(folder).unwrap().to_owned(), bytes)
        };
        all.into_iter().map(name).collect::<std::collections::BTreeMap<_, _>>()
    };
    let expected = files(whole.path());
    assert!(expected.keys().any(|path| path.ends_with("tensors.safetensors")));
    let broken = tempfile::tempdir().unwrap();
    events(broken.path());
    let mut stream = Seed::new(5).stream("kills");
    for _ in 0..kills {
        let mut child = Command::new(env!("CARGO_BIN_EXE_crab"))
            .args(&args)
            .args(["--threads", "1", "-q"])
            .current_dir(broken.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let wait = took / 4 + stream.below(1 + took as usize / 2) as u64;
        std::thread::sleep(std::time::Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    ok(broken.path(), &args);
    assert!(files(broken.path()) == expected, "weights differ from those of an undisturbed run");
    let recommended = |folder: &Path| {
        ok(folder, &["predict", "events.csv"]);
        fs::read_to_string(folder.join("recommendations.csv")).unwrap()
    };
    assert_eq!(recommended(broken.path()), recommended(whole.path()));
}
