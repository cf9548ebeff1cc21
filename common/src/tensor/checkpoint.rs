//! Checkpoints that survive a kill at any instant.
//!
//! A checkpoint is a folder `step-<number>` with `tensors.safetensors`, `state.json` and
//! `manifest.json` (size and SHA-256 of both). It is written under another name, flushed to the
//! disk and then renamed, so a folder of the final name is complete or damaged from outside; the
//! manifest tells which. [`Checkpoints::latest`] falls back to the one before.

mod trained;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

pub use trained::{Outcome, Trained};

const TENSORS: &str = "tensors.safetensors";
const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";
const BEST: &str = "best.json";

/// A folder of checkpoints; keeps the last two and the best.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
}

/// A checkpoint that was read back whole.
#[derive(Debug, Clone)]
pub struct Checkpoint<S> {
    /// Step after which it was written.
    pub step: u64,
    /// Parameters, optimiser state and whatever else was put in, by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Position of the random streams, the data cursor, counters.
    pub state: S,
    /// Newer checkpoints that were damaged and passed over, with what was wrong.
    pub skipped: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    step: u64,
    files: BTreeMap<String, FileEntry>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    bytes: u64,
    sha256: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Best {
    step: u64,
    score: f64,
}

impl FileEntry {
    fn of(bytes: &[u8]) -> Self {
        let digest = Sha256::digest(bytes);
        let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { bytes: bytes.len() as u64, sha256 }
    }
}

impl Checkpoints {
    /// Checkpoints in `folder`, which is made if absent. What a killed process left unfinished is
    /// removed.
    pub fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
            let entry = entry.map_err(Error::io(folder))?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(".unfinished-step-")) {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(Error::io(&path))?;
            }
        }
        Ok(Self { folder: folder.to_path_buf() })
    }

    /// Writes the checkpoint of `step`. `score`, where given, is what "best" means: higher wins.
    /// On an error (a full disk, say) the checkpoints that were there are as they were.
    pub fn save(
        &self,
        step: u64,
        tensors: &BTreeMap<String, Tensor>,
        state: &impl Serialize,
        score: Option<f64>,
    ) -> Result<PathBuf> {
        let unfinished = self.folder.join(format!(".unfinished-step-{step:010}"));
        let path = self.path(step);
        let written = self.write(step, tensors, state, &unfinished, &path);
        if written.is_err() {
            // the first error is the one to report
            let _ = fs::remove_dir_all(&unfinished);
        }
        written?;
        if let Some(score) = score
            && self.best_entry()?.is_none_or(|best| score > best.score || best.step == step)
        {
            write_atomically(&self.folder.join(BEST), &to_json(&Best { step, score })?)?;
        }
        self.remove_old()?;
        Ok(path)
    }

    fn write(
        &self,
        step: u64,
        tensors: &BTreeMap<String, Tensor>,
        state: &impl Serialize,
        unfinished: &Path,
        path: &Path,
    ) -> Result<()> {
        if unfinished.exists() {
            fs::remove_dir_all(unfinished).map_err(Error::io(unfinished))?;
        }
        fs::create_dir(unfinished).map_err(Error::io(unfinished))?;
        let bytes = safetensors::serialize(tensors, None)
            .map_err(|error| Error::Bug(format!("tensors of step {step}: {error}")))?;
        let mut files = BTreeMap::new();
        for (name, bytes) in [(TENSORS, bytes), (STATE, to_json(state)?)] {
            write_synced(&unfinished.join(name), &bytes)?;
            files.insert(name.to_owned(), FileEntry::of(&bytes));
        }
        write_synced(&unfinished.join(MANIFEST), &to_json(&Manifest { step, files })?)?;
        sync_folder(unfinished)?;
        if path.exists() {
            // a run that was resumed from an earlier step writes this one again
            fs::remove_dir_all(path).map_err(Error::io(path))?;
        }
        fs::rename(unfinished, path).map_err(Error::io(path))?;
        sync_folder(&self.folder)
    }

    /// The newest checkpoint that is whole, or `None` if there is none at all. If all are damaged,
    /// that is an error: starting over must be the user's decision.
    pub fn latest<S: DeserializeOwned>(&self) -> Result<Option<Checkpoint<S>>> {
        let mut skipped = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            match self.load(step) {
                Ok(checkpoint) => return Ok(Some(Checkpoint { skipped, ..checkpoint })),
                Err(error) => {
                    tracing::warn!("checkpoint of step {step} is passed over: {error}");
                    skipped.push(error.to_string());
                }
            }
        }
        match skipped.into_iter().next() {
            None => Ok(None),
            Some(problem) => Err(Error::asset(
                self.folder.display().to_string(),
                format!("no checkpoint is whole ({problem})"),
                "restore one, or remove the folder to start over",
            )),
        }
    }

    /// The checkpoint with the highest score, if scores were given.
    pub fn best<S: DeserializeOwned>(&self) -> Result<Option<Checkpoint<S>>> {
        self.best_entry()?.map(|best| self.load(best.step)).transpose()
    }

    /// Steps that have a folder, ascending.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let mut steps = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(Error::io(&self.folder))? {
            let name = entry.map_err(Error::io(&self.folder))?.file_name();
            let step: Option<u64> =
                name.to_str().and_then(|name| name.strip_prefix("step-")?.parse().ok());
            steps.extend(step);
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// The checkpoint of `step`, with every byte checked.
    pub fn load<S: DeserializeOwned>(&self, step: u64) -> Result<Checkpoint<S>> {
        let path = self.path(step);
        let damaged = |file: &str, problem: String| {
            let remedy = "resume from another checkpoint";
            Error::asset(path.join(file).display().to_string(), problem, remedy)
        };
        let read = |file: &str| {
            let path = path.join(file);
            fs::read(&path).map_err(Error::io(&path))
        };
        let manifest: Manifest = serde_json::from_slice(&read(MANIFEST)?)
            .map_err(|error| damaged(MANIFEST, error.to_string()))?;
        let checked = |file: &str| {
            let bytes = read(file)?;
            if manifest.files.get(file) != Some(&FileEntry::of(&bytes)) {
                return Err(damaged(file, "its size or SHA-256 is not the manifest's".into()));
            }
            Ok(bytes)
        };
        let tensors = candle_core::safetensors::load_buffer(&checked(TENSORS)?, &Device::Cpu)
            .map_err(|error| damaged(TENSORS, error.to_string()))?;
        let state = serde_json::from_slice(&checked(STATE)?)
            .map_err(|error| damaged(STATE, error.to_string()))?;
        Ok(Checkpoint {
            step: manifest.step,
            tensors: tensors.into_iter().collect(),
            state,
            skipped: Vec::new(),
        })
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:010}"))
    }

    fn best_entry(&self) -> Result<Option<Best>> {
        let path = self.folder.join(BEST);
        match fs::read(&path) {
            // a damaged pointer only loses the protection of the best
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(&path)(error)),
        }
    }

    /// Keeps the last two and the best.
    fn remove_old(&self) -> Result<()> {
        let steps = self.steps()?;
        let best = self.best_entry()?.map(|best| best.step);
        for &step in &steps[..steps.len().saturating_sub(2)] {
            if best != Some(step) {
                let path = self.path(step);
                fs::remove_dir_all(&path).map_err(Error::io(&path))?;
            }
        }
        Ok(())
    }
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|error| Error::Bug(format!("state: {error}")))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(Error::io(path))?;
    file.write_all(bytes).map_err(Error::io(path))?;
    file.sync_all().map_err(Error::io(path))
}

/// Replaces a file as a whole: readers see the old bytes or the new ones.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".unfinished");
    let unfinished = path.with_file_name(name);
    write_synced(&unfinished, bytes)?;
    fs::rename(&unfinished, path).map_err(Error::io(path))?;
    sync_folder(path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new(".")))
}

/// Makes names in a folder durable.
fn sync_folder(path: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io(path))?;
    }
    Ok(())
}
