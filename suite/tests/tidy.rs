//! House rules that no compiler checks: who depends on whom, which files a paper has, what its
//! README says, who may print, exit, open sockets or draw random numbers.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Files that every paper crate has. `x.rs` may be a folder `x/mod.rs` or `x.rs` beside a folder.
const PAPER_FILES: [&str; 13] = [
    "README.md",
    "src/lib.rs",
    "src/main.rs",
    "src/config.rs",
    "src/data.rs",
    "src/model.rs",
    "src/train.rs",
    "src/eval.rs",
    "src/baselines.rs",
    "src/bench.rs",
    "tests/it/main.rs",
    "examples/quick.rs",
    "Cargo.toml",
];

const README_HEADINGS: [&str; 7] = [
    "Idea",
    "Run",
    "Use as a library",
    "Departures from the paper",
    "Results",
    "Limits",
    "Citation",
];

const MAX_LINES: usize = 1000;
const MAX_MAIN_LINES: usize = 100;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn members() -> Vec<String> {
    let packages = metadata()["packages"].as_array().unwrap().clone();
    packages.iter().map(|package| package["name"].as_str().unwrap().to_owned()).collect()
}

fn papers() -> Vec<String> {
    members().into_iter().filter(|name| name != "common" && name != "suite").collect()
}

/// Every file below the workspace's crates with one of the extensions, as (path from the root,
/// text).
fn files(extensions: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = members().iter().map(|name| root().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|end| extensions.iter().any(|e| end == *e)) {
                let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Lines of library and binary code: no comments, nothing from `#[cfg(test)]` on.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .take_while(|line| line.trim() != "#[cfg(test)]")
        .filter(|line| !line.trim_start().starts_with("//"))
}

/// Fails with all `problems` at once.
#[track_caller]
fn none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// Problems of all files of `src` folders where a code line contains one of the words, except
/// where `allowed` says so.
fn code_without(words: &[&str], allowed: impl Fn(&str) -> bool) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, text) in files(&["rs"]) {
        if !name.contains("/src/") || allowed(&name) {
            continue;
        }
        for word in words {
            if code_lines(&text).any(|line| line.contains(word)) {
                problems.push(format!("{name}: uses {word}"));
            }
        }
    }
    problems
}

#[test]
fn papers_depend_on_common_and_nothing_of_ours_depends_on_papers() {
    let papers: BTreeSet<String> = papers().into_iter().collect();
    let mut problems = Vec::new();
    for package in metadata()["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let other = dependency["name"].as_str().unwrap();
            if papers.contains(other) || other == "suite" {
                problems.push(format!("{name} depends on {other}"));
            }
            if name == "common" && members().iter().any(|m| m == other) && other != "common" {
                problems.push(format!("common depends on {other}"));
            }
        }
    }
    none(problems);
}

/// Inside a paper: main → bench → {train, eval, baselines} → model → config; data is a leaf.
#[test]
fn modules_of_a_paper_point_one_way() {
    let forbidden: [(&str, &[&str]); 6] = [
        // config may name the option types of what it configures.
        ("config", &["bench", "eval", "baselines"]),
        ("data", &["bench", "train", "eval", "baselines", "model"]),
        ("model", &["bench", "train", "eval", "baselines", "data"]),
        ("train", &["bench", "eval"]),
        ("eval", &["bench"]),
        ("baselines", &["bench"]),
    ];
    let mut problems = Vec::new();
    let papers = papers();
    for (name, text) in files(&["rs"]) {
        let Some((krate, inner)) = name.split_once("/src/") else { continue };
        if !papers.iter().any(|paper| paper == krate) {
            continue;
        }
        let module = inner.split('/').next().unwrap().trim_end_matches(".rs");
        let Some((_, others)) = forbidden.iter().find(|(m, _)| *m == module) else { continue };
        for other in *others {
            let uses = format!("crate::{other}::");
            let used = code_lines(&text)
                .any(|line| line.contains(&uses) || line.trim() == format!("use crate::{other};"));
            if used {
                problems.push(format!("{name}: {module} must not know {other}"));
            }
        }
    }
    none(problems);
}

#[test]
fn every_paper_has_the_same_files_or_says_why_not() {
    let mut problems = Vec::new();
    for paper in papers() {
        let folder = root().join(&paper);
        let about = std::fs::read_to_string(folder.join("src/lib.rs")).unwrap_or_default();
        for file in PAPER_FILES {
            let as_folder = file.strip_suffix(".rs").map(|stem| folder.join(stem).join("mod.rs"));
            let there = folder.join(file).exists() || as_folder.is_some_and(|path| path.exists());
            // lib.rs names a file that would be empty.
            let stem = file.trim_start_matches("src/").trim_end_matches(".rs");
            let excused = about.contains(&format!("no `{stem}`"));
            if !there && !excused {
                problems.push(format!("{paper}: no {file}, and src/lib.rs does not say why"));
            }
        }
        if !about.starts_with("//!") || !about.contains("arXiv") {
            problems.push(format!("{paper}: src/lib.rs does not begin with its paper"));
        }
        let main = std::fs::read_to_string(folder.join("src/main.rs")).unwrap_or_default();
        if main.lines().count() > MAX_MAIN_LINES {
            problems.push(format!("{paper}: src/main.rs is over {MAX_MAIN_LINES} lines"));
        }
    }
    none(problems);
}

#[test]
fn paper_readmes_have_the_same_headings() {
    let mut problems = Vec::new();
    for paper in papers() {
        let text =
            std::fs::read_to_string(root().join(&paper).join("README.md")).unwrap_or_default();
        let headings: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("## ")).map(str::trim).collect();
        if headings != README_HEADINGS {
            problems.push(format!(
                "{paper}/README.md: found {headings:?}, expected {README_HEADINGS:?}"
            ));
        }
    }
    none(problems);
}

#[test]
fn no_file_is_too_long() {
    let long = files(&["rs", "py", "md"]).into_iter().filter_map(|(name, text)| {
        let lines = text.lines().count();
        (lines > MAX_LINES).then(|| format!("{name}: {lines} lines, at most {MAX_LINES}"))
    });
    none(long.collect());
}

#[test]
fn random_numbers_come_from_common_rng() {
    let words =
        ["Tensor::randn", "Tensor::rand(", "rand_like", "randn_like", "thread_rng", "rand::rng("];
    none(code_without(&words, |name| name == "common/src/tensor/rng.rs"));
}

#[test]
fn sockets_open_in_assets_and_llm_only() {
    let words = ["ureq::", "hf_hub::", "TcpStream", "TcpListener", "UdpSocket", "tiny_http::"];
    none(code_without(&words, |name| {
        name.starts_with("common/src/pretrained/assets")
            || name.starts_with("common/src/pretrained/llm")
            || name.starts_with("common/src/testing")
    }));
}

#[test]
fn printing_and_exiting_stay_in_main() {
    let words = ["println!", "print!(", "eprint", "dbg!(", "process::exit", "process::abort"];
    none(code_without(&words, |name| {
        name.ends_with("src/main.rs") || name.starts_with("common/src/testing")
    }));
}

#[test]
fn anyhow_stays_in_main() {
    none(code_without(&["anyhow"], |name| name.ends_with("src/main.rs")));
}

#[test]
fn no_paths_of_one_machine() {
    let roots = ["/home/", "/root/", "/Users/", "/work/", "C:\\Users"];
    let mut problems = Vec::new();
    for (name, text) in files(&["rs", "py", "md", "toml"]) {
        if name == "suite/tests/tidy.rs" {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            if let Some(found) = roots.iter().find(|path| line.contains(**path)) {
                problems.push(format!("{name}:{}: {found}", index + 1));
            }
        }
    }
    none(problems);
}
