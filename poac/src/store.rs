//! Where trained pieces come from: the files that come with the crate, the cache, or a training now.
//!
//! `poac fit --seeds 3 --bundle poac/weights` trains all that the benchmark's default configuration
//! uses and writes the crate's files. They hold f16, and every training ends by rounding its outcome
//! to f16, so results are the same from either source.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Mutex;

use candle_core::{DType, Tensor};
use common::checkpoint::{Outcome, Trained};
use common::files::atomic_write;
use common::run::hash8;
use common::weights::Safetensors;
use common::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The crate's files.
const FILES: [&[u8]; 3] = [
    include_bytes!("../weights/1.safetensors"),
    include_bytes!("../weights/2.safetensors"),
    include_bytes!("../weights/3.safetensors"),
];

/// The header's entry with every piece's history.
const HISTORIES: &str = "histories";

/// Most bytes of tensors in one of the files.
const MOST: usize = 4_900_000;

/// A trained piece with its history as JSON.
#[derive(Debug, Clone)]
pub struct Piece {
    /// `name-hash`, the hash of everything that the training depends on.
    id: String,
    history: String,
    tensors: BTreeMap<String, Tensor>,
}

/// Finds trained pieces, or has them trained.
#[derive(Debug)]
pub struct Store {
    trained: Trained,
    /// Whether the crate's files are looked at.
    bundled: bool,
    taken: Mutex<Vec<Piece>>,
}

impl Store {
    /// Over a folder of the cache. Without `bundled`, whatever is not in the cache is trained.
    pub fn new(cache: &Path, bundled: bool) -> Self {
        Self { trained: Trained::new(cache), bundled, taken: Mutex::default() }
    }

    /// The piece `name` for `key`: from the crate's files, the cache or `train` (see
    /// [`Trained::get_or_train`]).
    ///
    /// # Errors
    /// Those of the training and the cache.
    pub fn get<K: Serialize, H: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        key: &K,
        train: impl FnOnce(&Path) -> Result<Outcome<H>>,
    ) -> Result<Outcome<H>> {
        let json =
            |what: &str, error: serde_json::Error| Error::Bug(format!("{name}: {what} {error}"));
        let text = serde_json::to_string(key).map_err(|error| json("key", error))?;
        let id = format!("{name}-{}", hash8(text.as_bytes()));
        if self.bundled
            && let Some(piece) = bundled(&id)?
        {
            let history =
                serde_json::from_str(&piece.history).map_err(|error| json("history", error))?;
            return Ok((piece.tensors, history));
        }
        let (tensors, history) = self.trained.get_or_train(name, key, |work| {
            let (tensors, history) = train(work)?;
            Ok((rounded(tensors)?, history))
        })?;
        let piece = Piece {
            id,
            history: serde_json::to_string(&history).map_err(|error| json("history", error))?,
            tensors: tensors.clone(),
        };
        self.taken
            .lock()
            .map_err(|_| Error::Bug("the list of pieces is poisoned".into()))?
            .push(piece);
        Ok((tensors, history))
    }

    /// Everything that came from the cache or a training so far.
    pub fn taken(self) -> Vec<Piece> {
        self.taken.into_inner().unwrap_or_default()
    }
}

/// Whether the crate's files hold the piece `id`.
fn bundled(id: &str) -> Result<Option<Piece>> {
    let prefix = format!("{id}/");
    for (at, bytes) in FILES.iter().enumerate() {
        let name = format!("bundled weights {}", at + 1);
        let file = Safetensors::from_bytes(bytes.to_vec(), Path::new(&name))?;
        let Some(histories) = file.metadata().and_then(|entries| entries.get(HISTORIES)) else {
            continue;
        };
        let mut histories: BTreeMap<String, String> = serde_json::from_str(histories)
            .map_err(|error| Error::Bug(format!("{name}: histories {error}")))?;
        let Some(history) = histories.remove(id) else { continue };
        let mut tensors = BTreeMap::new();
        for name in file.tensor_names().filter_map(|name| name.strip_prefix(&prefix)) {
            let tensor = file.tensor(&format!("{prefix}{name}"))?.to_tensor()?;
            tensors.insert(name.to_owned(), tensor);
        }
        return Ok(Some(Piece { id: id.to_owned(), history, tensors }));
    }
    Ok(None)
}

/// Values as f16 keeps them.
fn rounded(tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let round = |tensor: Tensor| tensor.to_dtype(DType::F16)?.to_dtype(DType::F32);
    tensors.into_iter().map(|(name, tensor)| Ok((name, round(tensor)?))).collect()
}

/// Writes the crate's files into `folder`, each piece once, into the first file with room for it.
///
/// # Errors
/// [`Error::Usage`] when the pieces do not fit; [`Error::Io`].
pub fn write(folder: &Path, pieces: Vec<Piece>) -> Result<()> {
    let mut files: [BTreeMap<String, Piece>; FILES.len()] = Default::default();
    let mut sizes = [0; FILES.len()];
    for piece in pieces {
        if files.iter().any(|file| file.contains_key(&piece.id)) {
            continue;
        }
        let size = piece.tensors.values().map(|tensor| 2 * tensor.elem_count()).sum::<usize>();
        let Some(at) = sizes.iter().position(|taken| taken + size <= MOST) else {
            let problem =
                format!("{} does not fit into {} files of {MOST} bytes", piece.id, FILES.len());
            return Err(Error::usage(problem));
        };
        sizes[at] += size;
        files[at].insert(piece.id.clone(), piece);
    }
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    for (at, pieces) in files.into_iter().enumerate() {
        let mut tensors = BTreeMap::new();
        let mut histories = BTreeMap::new();
        for (id, piece) in pieces {
            for (name, tensor) in piece.tensors {
                tensors.insert(format!("{id}/{name}"), tensor.to_dtype(DType::F16)?);
            }
            histories.insert(id, piece.history);
        }
        let wrong = |error: &dyn std::fmt::Display| Error::Bug(format!("weights: {error}"));
        let histories = serde_json::to_string(&histories).map_err(|error| wrong(&error))?;
        let header = HashMap::from([(HISTORIES.to_owned(), histories)]);
        let bytes =
            safetensors::serialize(&tensors, Some(header)).map_err(|error| wrong(&error))?;
        atomic_write(&folder.join(format!("{}.safetensors", at + 1)), &bytes)?;
    }
    Ok(())
}
