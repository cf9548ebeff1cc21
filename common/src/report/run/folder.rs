//! One run's folder.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{commit, redact, utc};
use crate::cli::{CommonArgs, Profile, Resolved};
use crate::report::{Report, html, png};
use crate::{Error, Result, runtime};

/// What decides which folder a run gets.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// Crate name of the paper.
    pub name: String,
    /// Profile of the command.
    pub profile: Profile,
    /// The resolved config as TOML.
    pub config: String,
    /// [`Resolved::hash8`] of it.
    pub hash8: String,
    /// Seeds of the run.
    pub seeds: Vec<u64>,
    /// Folder of run folders.
    pub out: PathBuf,
    /// Take the last unfinished folder with the same name, profile and config.
    pub resume: bool,
}

impl RunSpec {
    /// The run of crate `name` with these flags, config and seeds.
    pub fn new<C>(name: &str, args: &CommonArgs, resolved: &Resolved<C>, seeds: &[u64]) -> Self {
        Self {
            name: name.to_owned(),
            profile: args.profile,
            config: resolved.to_toml(),
            hash8: resolved.hash8(),
            seeds: seeds.to_vec(),
            out: args.out.clone(),
            resume: args.resume,
        }
    }
}

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// In progress, or ended without a word (killed, out of memory, power).
    Running,
    /// Finished.
    Ok,
    /// Ended with an error.
    Failed,
    /// Stopped by a signal.
    Interrupted,
}

/// `manifest.json`: how a run came about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Crate name of the paper.
    pub name: String,
    /// How the run stands.
    pub status: Status,
    /// Why it failed.
    pub error: Option<String>,
    /// Command line, secrets masked.
    pub argv: Vec<String>,
    /// See [`commit`].
    pub commit: Option<String>,
    /// Version of the workspace's crates.
    pub version: String,
    /// Operating system and architecture.
    pub platform: String,
    /// CPU model.
    pub cpu: String,
    /// Instruction set in use.
    pub kernels: String,
    /// Threads of the compute pool.
    pub threads: usize,
    /// Profile.
    pub profile: Profile,
    /// Hash of the config's values.
    pub config_hash: String,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Asset file → SHA-256.
    pub assets: BTreeMap<String, String>,
    /// Start, UTC; of the last process after a resume.
    pub started: String,
    /// End, UTC.
    pub ended: Option<String>,
}

/// An open run folder. One process at a time holds it; the lock goes with the process, however it
/// ends. Call [`RunFolder::close`] with the outcome.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    manifest: Manifest,
    resumed: bool,
    started: Instant,
    /// Held for its lock.
    _lock: File,
}

impl RunFolder {
    /// Makes a new folder, or with `spec.resume` takes up the last unfinished one of the same
    /// name, profile and config (a new one if there is none). Log lines go to its `log.jsonl`
    /// from now on.
    ///
    /// Fails with [`Error::Temporary`] when another process works in the folder, with
    /// [`Error::Io`] when it can't be written.
    pub fn open(spec: &RunSpec) -> Result<Self> {
        let parent = spec.out.join(&spec.name);
        fs::create_dir_all(&parent).map_err(Error::io(&parent))?;
        let unfinished = if spec.resume { last_unfinished(&parent, spec)? } else { None };
        let resumed = unfinished.is_some();
        let path = match unfinished {
            Some(path) => path,
            None => new_folder(&parent, spec)?,
        };
        let lock = lock(&path)?;
        let log = path.join("log.jsonl");
        let file =
            OpenOptions::new().create(true).append(true).open(&log).map_err(Error::io(&log))?;
        super::log::set_file(Some(file));
        let runtime = runtime::init(None);
        let manifest = Manifest {
            name: spec.name.clone(),
            status: Status::Running,
            error: None,
            argv: std::env::args_os().map(|word| redact(&word.to_string_lossy())).collect(),
            commit: commit(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: runtime.cpu.clone(),
            kernels: runtime.kernels.to_owned(),
            threads: runtime.threads,
            profile: spec.profile,
            config_hash: spec.hash8.clone(),
            seeds: spec.seeds.clone(),
            assets: BTreeMap::new(),
            started: utc(),
            ended: None,
        };
        let folder = Self { path, manifest, resumed, started: Instant::now(), _lock: lock };
        folder.write("config.toml", redact(&spec.config).as_bytes())?;
        folder.write_manifest()?;
        tracing::info!("run folder {}", folder.path.display());
        Ok(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the folder was taken up from an earlier process.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Notes an asset file and its SHA-256 in the manifest.
    pub fn record_asset(&mut self, file: &str, sha256: &str) -> Result<()> {
        self.manifest.assets.insert(file.to_owned(), sha256.to_owned());
        self.write_manifest()
    }

    /// Writes a file of the folder at once: other processes see all of it or the one before.
    /// Sub-folders of `name` are made.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::io(parent))?;
        }
        crate::data::atomic_write(&path, bytes)
    }

    /// Appends one JSON line to `metrics.jsonl`: a step of a search or a training curve.
    pub fn log_metrics(&self, record: &impl Serialize) -> Result<()> {
        let path = self.path.join("metrics.jsonl");
        let mut line = serde_json::to_string(record)
            .map_err(|error| Error::Bug(format!("{}: {error}", path.display())))?;
        line.push('\n');
        let mut file =
            OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        file.write_all(line.as_bytes()).map_err(Error::io(&path))
    }

    /// Writes `plots/*.svg` and `*.png`, `metrics.json`, `timings.json` and `report.html`, and
    /// sets the path of every figure.
    pub fn write_report(&self, report: &mut Report) -> Result<()> {
        for (index, figure) in report.figures.iter_mut().enumerate() {
            let name = format!("plots/{:02}-{}", index + 1, figure.slug());
            figure.svg = figure.described_svg();
            self.write(&format!("{name}.svg"), figure.svg.as_bytes())?;
            self.write(&format!("{name}.png"), &png(&figure.svg, 2.0)?)?;
            figure.path = self.path.join(format!("{name}.svg"));
        }
        self.write("metrics.json", report.metrics_json()?.as_bytes())?;
        self.write("timings.json", timings(report, self.started).as_bytes())?;
        let title = format!("{}, profile {}", report.paper, report.profile);
        let page = html::page(&title, &[], std::slice::from_ref(report));
        self.write("report.html", page.as_bytes())
    }

    /// Notes how the run ended. A manifest that still says "running" belongs to a process that was
    /// killed.
    pub fn close<T>(mut self, outcome: &Result<T>) -> Result<()> {
        (self.manifest.status, self.manifest.error) = match outcome {
            Ok(_) => (Status::Ok, None),
            Err(error @ Error::Interrupted(_)) => (Status::Interrupted, Some(error.to_string())),
            Err(error) => (Status::Failed, Some(redact(&error.to_string()))),
        };
        self.manifest.ended = Some(utc());
        let written = self.write_manifest();
        super::log::set_file(None);
        written
    }

    fn write_manifest(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.manifest)
            .map_err(|error| Error::Bug(format!("manifest: {error}")))?;
        self.write("manifest.json", (text + "\n").as_bytes())
    }
}

/// Seconds and memory of each row and of the run; the only numbers that differ between two equal
/// runs.
fn timings(report: &Report, started: Instant) -> String {
    let rows: Vec<serde_json::Value> = report
        .rows
        .iter()
        .map(|row| {
            serde_json::json!({
                "dataset": row.dataset, "method": row.method, "metric": row.metric,
                "seconds": row.seconds, "peak_rss_mb": row.peak_rss_mb,
            })
        })
        .collect();
    let seconds = started.elapsed().as_secs_f64();
    let peak = runtime::peak_rss_mb();
    let value = serde_json::json!({ "seconds": seconds, "peak_rss_mb": peak, "rows": rows });
    format!("{value:#}\n")
}

/// Takes the folder's lock. The system releases it when the process ends, so a lock file alone
/// means nothing.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::Temporary(format!(
                "{}: another process works in this run folder",
                folder.display()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(Error::io(&path)(error)),
    }
    // For people who look; the lock itself is not the text.
    let _ = file.set_len(0);
    let _ = writeln!(file, "{}", std::process::id());
    Ok(file)
}

fn new_folder(parent: &Path, spec: &RunSpec) -> Result<PathBuf> {
    let stamp = utc().replace([':', '-'], "");
    for attempt in 1..1000 {
        let twin = if attempt == 1 { String::new() } else { format!("-{attempt}") };
        let path = parent.join(format!("{stamp}-{}-{}{twin}", spec.profile, spec.hash8));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(&path)(error)),
        }
    }
    Err(Error::Bug(format!("{}: a thousand runs within one second", parent.display())))
}

/// The newest folder of the same profile and config whose manifest does not say "ok".
fn last_unfinished(parent: &Path, spec: &RunSpec) -> Result<Option<PathBuf>> {
    let marker = format!("-{}-{}", spec.profile, spec.hash8);
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(parent).map_err(Error::io(parent))? {
        let path = entry.map_err(Error::io(parent))?.path();
        let same = path.file_name().is_some_and(|name| name.to_string_lossy().contains(&marker));
        if same && path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found.into_iter().rev().find(|path| {
        let manifest = fs::read(path.join("manifest.json")).ok();
        let manifest: Option<Manifest> =
            manifest.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        // A folder without a readable manifest was cut off at its very start.
        manifest
            .is_none_or(|manifest| manifest.status != Status::Ok && manifest.seeds == spec.seeds)
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::report::{Figure, Row};

    fn spec(out: &Path, resume: bool) -> RunSpec {
        RunSpec {
            name: "paper".into(),
            profile: Profile::Smoke,
            config: "key = \"sk\"  # default\n".into(),
            hash8: "0123abcd".into(),
            seeds: vec![0],
            out: out.into(),
            resume,
        }
    }

    fn manifest(path: &Path) -> Manifest {
        serde_json::from_slice(&fs::read(path.join("manifest.json")).unwrap()).unwrap()
    }

    #[test]
    fn resume_takes_the_last_unfinished_folder() {
        let out = tempfile::tempdir().unwrap();
        let done = RunFolder::open(&spec(out.path(), true)).unwrap();
        assert!(!done.resumed());
        let first = done.path().to_owned();
        assert_eq!(manifest(&first).status, Status::Running);
        done.close(&Ok(())).unwrap();
        assert_eq!(manifest(&first).status, Status::Ok);
        let failed = RunFolder::open(&spec(out.path(), true)).unwrap();
        let second = failed.path().to_owned();
        assert_ne!(first, second);
        failed.close::<()>(&Err(Error::Interrupted(15))).unwrap();
        assert_eq!(manifest(&second).status, Status::Interrupted);
        let again = RunFolder::open(&spec(out.path(), true)).unwrap();
        assert!(again.resumed());
        assert_eq!(again.path(), second);
        let other = RunSpec { hash8: "ffffffff".into(), ..spec(out.path(), true) };
        assert!(!RunFolder::open(&other).unwrap().resumed());
    }

    #[test]
    fn a_report_leaves_its_files() {
        let out = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(&spec(out.path(), false)).unwrap();
        let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"9\" height=\"9\"></svg>";
        let mut report = Report {
            rows: vec![Row { mean: Some(1.0), seconds: Some(2.0), ..Row::default() }],
            figures: vec![Figure::new("A plot", "", svg.into())],
            ..Report::default()
        };
        folder.write_report(&mut report).unwrap();
        for name in ["metrics.json", "timings.json", "report.html", "plots/01-a-plot.png"] {
            assert!(folder.path().join(name).is_file(), "{name}");
        }
        let json = report.to_json().unwrap();
        let read = Report::from_json(&json, Path::new("stdout")).unwrap();
        assert_eq!(read.figures, report.figures);
        folder.log_metrics(&serde_json::json!({"step": 1})).unwrap();
        folder.log_metrics(&serde_json::json!({"step": 2})).unwrap();
        let lines = fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        assert_eq!(lines, "{\"step\":1}\n{\"step\":2}\n");
    }
}
