//! The suite against fake papers: shell scripts that succeed, fail, crash, hang or talk nonsense.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::report::{Report, Role, Row};
use tempfile::TempDir;

/// A folder of executables and a place to run in.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(bench.binaries()).unwrap();
        bench
    }

    fn binaries(&self) -> PathBuf {
        self.folder.path().join("binaries")
    }

    fn paper(&self, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.binaries().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A paper that prints a report with this accuracy.
    fn good_paper(&self, name: &str, accuracy: f64) {
        let row = Row {
            paper: name.into(),
            dataset: "toy".into(),
            method: "ours".into(),
            role: Role::Paper,
            metric: "accuracy".into(),
            mean: Some(accuracy),
            seconds: Some(1.5),
            ..Row::default()
        };
        let report = Report {
            paper: name.into(),
            profile: "smoke".into(),
            rows: vec![row],
            ..Report::default()
        };
        let file = self.folder.path().join(format!("{name}.json"));
        std::fs::write(&file, report.to_json().unwrap()).unwrap();
        self.paper(name, &format!("echo working >&2; cat '{}'", file.display()));
    }

    fn suite(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_suite"));
        command.current_dir(self.folder.path()).args(["--binaries", "binaries"]).args(arguments);
        command
    }

    fn results(&self) -> PathBuf {
        self.folder.path().join("RESULTS.md")
    }

    fn run_file(&self, name: &str) -> String {
        let parent = self.folder.path().join("runs/suite");
        let last = std::fs::read_dir(parent).unwrap().map(|e| e.unwrap().path()).max().unwrap();
        std::fs::read_to_string(last.join(name)).unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_kind_of_failure_becomes_a_row_and_the_others_go_on() {
    let bench = Bench::new();
    bench.good_paper("good", 0.75);
    bench.paper("crash", "kill -SEGV $$");
    bench.paper("garbage", "echo 'hello, this is no JSON'");
    bench.paper("hang", "exec sleep 600");
    bench.paper("refused", "exit 4");
    let start = Instant::now();
    let output = bench.suite(&["--profile", "smoke", "--timeout", "2"]);
    assert!(start.elapsed() < Duration::from_secs(30));
    let table = text(&output.stdout);
    // The first failure in the order of names is the crash.
    assert_eq!(output.status.code(), Some(101), "{}", text(&output.stderr));
    for words in [
        "0.7500",
        "failed: crashed (signal: 11",
        "failed: no report",
        "failed: stopped after its time limit of 2 s",
        "failed: exit code 4 (an asset or model is missing or invalid)",
    ] {
        assert!(table.contains(words), "no {words:?} in {table}");
    }
    assert!(text(&output.stderr).contains("working"), "stderr is passed through");
    assert!(bench.run_file("report.html").contains("crashed"));
    assert!(!bench.results().exists(), "profile smoke writes no RESULTS.md");
}

#[test]
fn a_full_run_writes_results_and_check_holds_later_runs_against_them() {
    let bench = Bench::new();
    bench.good_paper("one", 0.75);
    bench.good_paper("two", 0.5);
    let run = |arguments: &[&str]| bench.suite(arguments).status.code();
    assert_eq!(run(&["--profile", "cpu"]), Some(0));
    let first = std::fs::read_to_string(bench.results()).unwrap();
    assert!(first.find("## one").unwrap() < first.find("## two").unwrap());
    assert_eq!(run(&["--profile", "cpu", "--check"]), Some(0));
    bench.good_paper("two", 0.4);
    assert_eq!(run(&["--profile", "cpu", "--check"]), Some(7));
    assert_eq!(std::fs::read_to_string(bench.results()).unwrap(), first);
    // --only keeps the other paper's committed numbers.
    bench.good_paper("one", 0.1);
    assert_eq!(run(&["--profile", "cpu", "--only", "two"]), Some(0));
    let second = std::fs::read_to_string(bench.results()).unwrap();
    assert!(second.contains("0.7500") && second.contains("0.4000"), "{second}");
}

#[test]
fn a_failed_paper_leaves_the_committed_results_alone() {
    let bench = Bench::new();
    bench.good_paper("one", 0.75);
    assert_eq!(bench.suite(&["--profile", "cpu"]).status.code(), Some(0));
    let before = std::fs::read_to_string(bench.results()).unwrap();
    bench.paper("one", "exit 3");
    assert_eq!(bench.suite(&["--profile", "cpu"]).status.code(), Some(3));
    assert_eq!(std::fs::read_to_string(bench.results()).unwrap(), before);
}

#[test]
fn flags_reach_the_papers() {
    let bench = Bench::new();
    bench.paper("one", "echo \"$@\" > \"$(dirname \"$0\")/../words\"; exit 5");
    bench.suite(&["--profile", "smoke", "--seeds", "3", "--offline", "--threads", "1"]);
    let words = std::fs::read_to_string(bench.folder.path().join("words")).unwrap();
    assert!(words.starts_with("bench --json --profile smoke --seed 0"), "{words}");
    for flag in ["--seeds 3", "--offline", "--threads 1", "--out runs/suite/"] {
        assert!(words.contains(flag), "no {flag} in {words}");
    }
}

#[test]
fn an_interrupted_run_resumes_where_it_stood() {
    let bench = Bench::new();
    bench.good_paper("first", 0.75);
    bench.paper("second", "touch started; exec sleep 600");
    let mut child = bench.command(&["--profile", "smoke"]).spawn().unwrap();
    wait_for(&bench.folder.path().join("started"));
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    bench.paper("first", "exit 6");
    bench.good_paper("second", 0.25);
    let output = bench.suite(&["--profile", "smoke", "--resume"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    assert!(table.contains("0.7500") && table.contains("0.2500"), "{table}");
}

#[test]
fn report_prints_the_last_run_again() {
    let bench = Bench::new();
    assert_eq!(bench.suite(&["report"]).status.code(), Some(2));
    bench.good_paper("one", 0.75);
    bench.suite(&["--profile", "smoke"]);
    let output = bench.suite(&["report", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["reports"][0]["rows"][0]["mean"], 0.75);
}

#[test]
fn two_runs_compare_by_their_numbers() {
    let bench = Bench::new();
    let run = |accuracy: f64, out: &str| {
        bench.good_paper("one", accuracy);
        assert!(bench.suite(&["--profile", "smoke", "--out", out]).status.success());
    };
    run(0.75, "a");
    run(0.75 + 1e-8, "b");
    run(0.7, "c");
    let compare = |a: &str, b: &str, tolerance: &str| {
        bench.suite(&["compare", a, b, "--tolerance", tolerance]).status.code()
    };
    assert_eq!(compare("a", "b", "1e-6"), Some(0));
    assert_eq!(compare("a", "b", "0"), Some(7));
    assert_eq!(compare("a", "c", "1e-3"), Some(7));
    assert_eq!(compare("a", "nowhere", "1e-3"), Some(2));
}

#[test]
fn wrong_usage_is_named() {
    let bench = Bench::new();
    bench.good_paper("one", 0.75);
    let output = bench.suite(&["--only", "two"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("there are one"), "{}", text(&output.stderr));
    assert_eq!(bench.suite(&["--set", "a=1"]).status.code(), Some(2));
}

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < Duration::from_secs(30), "no {}", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}
