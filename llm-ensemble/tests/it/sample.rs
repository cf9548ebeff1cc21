//! The three commands of the README on the sample files.

use std::path::Path;

use crate::cli::{run, stderr, stdout};

#[test]
fn the_sample_runs_in_three_commands() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample");
    let votes = sample.join("votes.csv");
    let gold = sample.join("gold.csv");
    let (votes, gold) = (votes.to_str().unwrap(), gold.to_str().unwrap());
    let folder = tempfile::tempdir().unwrap();
    for args in [
        &["fit", votes, "--model", "model.json"][..],
        &["predict", votes, "--model", "model.json", "--labels", "labels.csv"],
        &["eval", votes, "--gold", gold],
    ] {
        let output = run(folder.path(), args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        assert!(!stdout(&output).is_empty(), "{args:?}");
    }
    let labels = std::fs::read_to_string(folder.path().join("labels.csv")).unwrap();
    assert_eq!(labels.lines().count(), 41, "{labels}");
}
