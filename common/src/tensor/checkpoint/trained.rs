//! Trained tensors kept by what they were trained from.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::Tensor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::Checkpoints;
use crate::files::atomic_write;
use crate::run::check_interrupt;
use crate::{Error, Result};

/// How often a model that another process trains is looked at.
const POLL: Duration = Duration::from_millis(50);

/// A folder of trained models, each found again by a hash of everything that its training depends
/// on.
#[derive(Debug, Clone)]
pub struct Trained {
    folder: PathBuf,
}

/// What a training yields: its tensors by name and a history (losses, seconds, scores).
pub type Outcome<H> = (BTreeMap<String, Tensor>, H);

impl Trained {
    /// The models kept in `folder`; [`crate::assets::AssetOptions::cache`] is the usual parent.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The tensors and the history that `train` gave for `key` earlier, or gives now.
    ///
    /// `key` holds all that the result depends on: config, seed, a fingerprint of the data, and a
    /// number that is raised whenever the training code changes. `train` gets a folder of its own
    /// for [`Checkpoints`] and may resume from what a killed process left there. A kept model that
    /// is damaged is trained again. While one process trains a key, others that want it wait.
    ///
    /// # Errors
    /// Those of `train`, [`Error::Io`], [`Error::Interrupted`] while waiting, [`Error::Bug`] when `key` or the history can't be JSON.
    pub fn get_or_train<K: Serialize, H: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        key: &K,
        train: impl FnOnce(&Path) -> Result<Outcome<H>>,
    ) -> Result<Outcome<H>> {
        let key = serde_json::to_string_pretty(key)
            .map_err(|error| Error::Bug(format!("key of {name}: {error}")))?;
        let digest = Sha256::digest(&key);
        let hash: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let folder = self.folder.join(format!("{name}-{hash}"));
        let _lock = lock(&folder, name)?;
        let finished = Checkpoints::open(&folder.join("finished"))?;
        match finished.latest() {
            Ok(Some(kept)) => return Ok((kept.tensors, kept.state)),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!("{name} is trained again: {error}");
                let path = folder.join("finished");
                fs::remove_dir_all(&path).map_err(Error::io(&path))?;
            }
        }
        // for people who wonder what the folder holds
        atomic_write(&folder.join("key.json"), key.as_bytes())?;
        let work = folder.join("work");
        fs::create_dir_all(&work).map_err(Error::io(&work))?;
        let (tensors, history) = train(&work)?;
        Checkpoints::open(&folder.join("finished"))?.save(0, &tensors, &history, None)?;
        fs::remove_dir_all(&work).map_err(Error::io(&work))?;
        Ok((tensors, history))
    }
}

/// Waits until no other process (or thread) works on the model in `folder`. The system releases the
/// lock with the process, however that ends.
fn lock(folder: &Path, name: &str) -> Result<File> {
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let path = folder.join("lock");
    let file = File::create(&path).map_err(Error::io(&path))?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                if !told {
                    tracing::info!("{name}: another process trains it; waiting for {path:?}");
                    told = true;
                }
                check_interrupt()?;
                std::thread::sleep(POLL);
            }
            Err(TryLockError::Error(error)) => return Err(Error::io(&path)(error)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn train(value: f32) -> impl FnOnce(&Path) -> Result<Outcome<Vec<f64>>> {
        move |_| {
            let tensor = Tensor::from_vec(vec![value; 3], 3, &Device::Cpu)?;
            Ok((BTreeMap::from([("w".to_owned(), tensor)]), vec![0.5, 0.25]))
        }
    }

    fn value(outcome: &Outcome<Vec<f64>>) -> f32 {
        assert_eq!(outcome.1, [0.5, 0.25]);
        outcome.0["w"].to_vec1::<f32>().unwrap()[0]
    }

    #[test]
    fn a_model_is_trained_once_per_key() {
        let folder = tempfile::tempdir().unwrap();
        let trained = Trained::new(folder.path());
        let get =
            |key: &str, new: f32| value(&trained.get_or_train("m", &key, train(new)).unwrap());
        assert_eq!(get("a", 1.0), 1.0);
        assert_eq!(get("a", 2.0), 1.0);
        assert_eq!(get("b", 3.0), 3.0);
        let failed = trained
            .get_or_train("m", &"c", |_| -> Result<Outcome<Vec<f64>>> { Err(Error::usage("no")) });
        assert!(failed.is_err());
        assert_eq!(get("c", 4.0), 4.0);
    }

    #[test]
    fn who_wants_what_another_trains_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let trained = Trained::new(folder.path());
        let trainings = std::sync::atomic::AtomicUsize::new(0);
        let get = || {
            let slow = |work: &Path| {
                trainings.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                fs::write(work.join("half"), "").unwrap();
                std::thread::sleep(4 * POLL);
                assert!(work.join("half").exists());
                train(1.0)(work)
            };
            value(&trained.get_or_train("m", &1, slow).unwrap())
        };
        std::thread::scope(|scope| {
            let threads = [scope.spawn(get), scope.spawn(get), scope.spawn(get)];
            threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), 1.0));
        });
        assert_eq!(trainings.into_inner(), 1);
    }

    #[test]
    fn a_damaged_model_is_trained_again() {
        let folder = tempfile::tempdir().unwrap();
        let trained = Trained::new(folder.path());
        trained.get_or_train("m", &1, train(1.0)).unwrap();
        let kept = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let tensors = kept.join("finished/step-0000000000/tensors.safetensors");
        fs::write(tensors, b"damaged").unwrap();
        assert_eq!(value(&trained.get_or_train("m", &1, train(2.0)).unwrap()), 2.0);
    }
}
