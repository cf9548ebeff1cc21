//! Vectors on disk, in safetensors files that are written once and never changed.
//!
//! Each file holds `keys` (n, 32) u8 and `vectors` (n, width) f32, with a checksum of both in its
//! metadata. Writers only ever add files, so any number of them can share a folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// sha256 of what a vector depends on.
pub(super) type Key = [u8; 32];

const EXTENSION: &str = "safetensors";
const CHECKSUM: &str = "sha256";

pub(super) struct Cache {
    folder: PathBuf,
    width: usize,
    vectors: HashMap<Key, Vec<f32>>,
}

impl Cache {
    /// Opens the cache and reads what it holds.
    pub(super) fn open(folder: &Path, width: usize) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mut cache = Self { folder: folder.to_path_buf(), width, vectors: HashMap::new() };
        for item in std::fs::read_dir(folder).map_err(Error::io(folder))? {
            let path = item.map_err(Error::io(folder))?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                match std::fs::read(&path).map_err(|error| error.to_string()).and_then(|bytes| {
                    read_file(&bytes, width).ok_or_else(|| "it is damaged".to_owned())
                }) {
                    Ok(entries) => cache.vectors.extend(entries),
                    Err(problem) => {
                        tracing::warn!("encoder cache: {} is ignored: {problem}", path.display());
                    }
                }
            }
        }
        Ok(cache)
    }

    pub(super) fn get(&self, key: &Key) -> Option<&[f32]> {
        self.vectors.get(key).map(Vec::as_slice)
    }

    /// Adds entries in memory and as one new file.
    pub(super) fn add(&mut self, entries: Vec<(Key, Vec<f32>)>) -> Result<()> {
        let keys: Vec<u8> = entries.iter().flat_map(|(key, _)| *key).collect();
        let vectors: Vec<u8> = entries
            .iter()
            .flat_map(|(_, vector)| vector.iter().flat_map(|value| value.to_le_bytes()))
            .collect();
        let checksum = checksum(&keys, &vectors);
        // Named by content: the same entries written twice are one file.
        let path = self.folder.join(format!("{}.{EXTENSION}", &checksum[..32]));
        let bug = |error: safetensors::SafeTensorError| Error::Bug(error.to_string());
        let (rows, width) = (entries.len(), self.width);
        let tensors = [
            ("keys", TensorView::new(Dtype::U8, vec![rows, 32], &keys).map_err(bug)?),
            ("vectors", TensorView::new(Dtype::F32, vec![rows, width], &vectors).map_err(bug)?),
        ];
        let metadata = HashMap::from([(CHECKSUM.to_owned(), checksum)]);
        let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(bug)?;
        crate::files::atomic_write(&path, &bytes)?;
        self.vectors.extend(entries);
        Ok(())
    }
}

fn checksum(keys: &[u8], vectors: &[u8]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(keys);
    hasher.update(vectors);
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The entries of a file; `None` when it is damaged or of another width.
fn read_file(bytes: &[u8], width: usize) -> Option<Vec<(Key, Vec<f32>)>> {
    let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
    let file = SafeTensors::deserialize(bytes).ok()?;
    let (keys, vectors) = (file.tensor("keys").ok()?, file.tensor("vectors").ok()?);
    let stated = header.metadata().as_ref()?.get(CHECKSUM)?;
    let rows = *keys.shape().first()?;
    let sound = keys.dtype() == Dtype::U8
        && vectors.dtype() == Dtype::F32
        && keys.shape() == [rows, 32]
        && vectors.shape() == [rows, width]
        && *stated == checksum(keys.data(), vectors.data());
    sound.then(|| {
        let vectors = vectors.data().chunks_exact(4 * width).map(|row| {
            row.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
        });
        keys.data().as_chunks::<32>().0.iter().copied().zip(vectors).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u8) -> (Key, Vec<f32>) {
        ([n; 32], vec![f32::from(n), 0.5, -1.0])
    }

    #[test]
    fn writers_add_to_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Cache::open(folder.path(), 3).unwrap();
        let mut second = Cache::open(folder.path(), 3).unwrap();
        first.add(vec![entry(1), entry(2)]).unwrap();
        second.add(vec![entry(2), entry(3)]).unwrap();
        let third = Cache::open(folder.path(), 3).unwrap();
        for n in 1..=3 {
            assert_eq!(third.get(&entry(n).0), Some(entry(n).1.as_slice()));
        }
        assert_eq!(third.get(&entry(4).0), None);
    }

    #[test]
    fn a_damaged_file_or_another_width_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        Cache::open(folder.path(), 3).unwrap().add(vec![entry(1)]).unwrap();
        assert_eq!(Cache::open(folder.path(), 4).unwrap().vectors.len(), 0);
        let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let good = std::fs::read(&path).unwrap();
        for position in [0, 20, good.len() - 1] {
            let mut bytes = good.clone();
            bytes[position] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(Cache::open(folder.path(), 3).unwrap().vectors.len(), 0, "{position}");
        }
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert_eq!(Cache::open(folder.path(), 3).unwrap().vectors.len(), 0);
        std::fs::write(&path, &good).unwrap();
        assert_eq!(Cache::open(folder.path(), 3).unwrap().vectors.len(), 1);
    }
}
