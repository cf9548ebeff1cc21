//! Which papers there are, and their binaries.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Error, Result};
use serde_json::Value;

/// A paper and its executable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paper {
    /// Crate name.
    pub name: String,
    /// Executable.
    pub binary: PathBuf,
}

/// Members of the workspace that are not papers.
const OTHERS: [&str; 2] = ["common", "suite"];

/// Root folder of the workspace and the names of its paper crates, ascending, from
/// `cargo metadata`.
pub fn workspace() -> Result<(PathBuf, Vec<String>)> {
    let output = cargo()
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(Error::io(Path::new("cargo")))?;
    let unreadable = || Error::usage("`cargo metadata` failed: run this inside the workspace");
    if !output.status.success() {
        return Err(unreadable());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).map_err(|_| unreadable())?;
    let root = metadata["workspace_root"].as_str().ok_or_else(unreadable)?;
    let packages = metadata["packages"].as_array().ok_or_else(unreadable)?;
    let mut names: Vec<String> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .filter(|name| !OTHERS.contains(name))
        .map(str::to_owned)
        .collect();
    names.sort();
    Ok((PathBuf::from(root), names))
}

/// The papers of `only` (all when empty). Fails with [`Error::Usage`] on a name that is none.
pub fn choose(all: &[String], only: &[String]) -> Result<Vec<String>> {
    for name in only {
        if !all.contains(name) {
            let known = all.join(", ");
            return Err(Error::usage(format!("--only {name}: no such paper; there are {known}")));
        }
    }
    Ok(all.iter().filter(|name| only.is_empty() || only.contains(name)).cloned().collect())
}

/// Builds the binaries of `names` with cargo, in the profile this program was built in.
pub fn build(root: &Path, names: &[String]) -> Result<Vec<Paper>> {
    let mut command = cargo();
    command.current_dir(root).args(["build", "--bins", "--message-format=json-render-diagnostics"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    for name in names {
        command.args(["-p", name]);
    }
    let output =
        command.stderr(Stdio::inherit()).output().map_err(Error::io(Path::new("cargo")))?;
    if !output.status.success() {
        return Err(Error::usage("the papers did not build; cargo's messages are above"));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let built: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    names
        .iter()
        .map(|name| {
            let binary = built
                .iter()
                .filter(|message| message["target"]["name"] == name.as_str())
                .find_map(|message| message["executable"].as_str())
                .ok_or_else(|| Error::Bug(format!("cargo built no binary named {name}")))?;
            Ok(Paper { name: name.clone(), binary: PathBuf::from(binary) })
        })
        .collect()
}

/// What a paper is about, from its card in `<root>/<name>/README.md`: the title and the section
/// "Idea", as Markdown. Empty without a card.
pub fn about(root: &Path, name: &str) -> String {
    let Ok(card) = std::fs::read_to_string(root.join(name).join("README.md")) else {
        return String::new();
    };
    let mut sections = card.split("\n## ");
    let title = sections.next().and_then(|head| head.split_once('\n')).map_or("", |(_, rest)| rest);
    let idea = sections.find_map(|section| section.strip_prefix("Idea\n")).unwrap_or_default();
    format!("{}\n\n{}", title.trim(), idea.trim())
}

/// The executables of a folder as papers, by file name: binaries that were built elsewhere.
pub fn in_folder(folder: &Path) -> Result<Vec<Paper>> {
    let mut papers = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
        if path.is_file() && is_executable(&path) && !OTHERS.contains(&name) {
            papers.push(Paper { name: name.to_owned(), binary: path.clone() });
        }
    }
    papers.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(papers)
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "exe")
}

/// cargo itself. What `cargo run` told this program about its own package is not passed on: build
/// scripts that look at it (ring's) would run again, and all that depends on them.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_card_gives_its_title_and_idea() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("p")).unwrap();
        let card = "# p\n\n\"A paper\".\n\n## Idea\n\nVote.\n\n1. first\n\n## Run\n\nx\n";
        std::fs::write(root.path().join("p/README.md"), card).unwrap();
        assert_eq!(about(root.path(), "p"), "\"A paper\".\n\nVote.\n\n1. first");
        assert_eq!(about(root.path(), "q"), "");
    }

    #[test]
    fn only_keeps_known_names() {
        let all = ["crab", "cure", "llm-ensemble"].map(String::from);
        assert_eq!(choose(&all, &[]).unwrap().len(), 3);
        assert_eq!(choose(&all, &["cure".into()]).unwrap(), ["cure"]);
        let error = choose(&all, &["crub".into()]).unwrap_err().to_string();
        assert!(error.contains("crub") && error.contains("llm-ensemble"), "{error}");
    }
}
