//! Trained weights that come with the crate: the benchmark's models on ML-100k and the graph
//! embeddings that they read.
//!
//! A piece is named by a hash of everything that its training depends on, so that other data,
//! options or seeds never meet it. `cargo run --release -p tmf --example bundle` trains the pieces
//! and writes the files.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::Tensor;
use common::checkpoint::Outcome;
use common::files::atomic_write;
use common::weights::Safetensors;
use common::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The crate's files.
const FILES: [&[u8]; 2] =
    [include_bytes!("../weights/1.safetensors"), include_bytes!("../weights/2.safetensors")];
/// The header's entry with every piece's history.
const HISTORIES: &str = "histories";
/// Most bytes of tensors in one of the files.
const MOST: usize = 4_900_000;

/// A trained piece.
#[derive(Debug)]
pub struct Piece {
    id: String,
    tensors: BTreeMap<String, Tensor>,
    /// JSON.
    history: String,
}

impl Piece {
    /// `history` is what [`find`] gives back beside the tensors.
    ///
    /// # Errors
    /// [`Error::Bug`] when `history` can't be JSON.
    pub fn new(
        id: String,
        tensors: BTreeMap<String, Tensor>,
        history: impl Serialize,
    ) -> Result<Self> {
        let history = serde_json::to_string(&history).map_err(|error| wrong(&id, &error))?;
        Ok(Self { id, tensors, history })
    }
}

fn wrong(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Bug(format!("{what}: {error}"))
}

/// The piece `id` of the crate's files.
///
/// # Errors
/// A damaged file.
pub fn find<H: DeserializeOwned>(id: &str) -> Result<Option<Outcome<H>>> {
    for (at, bytes) in FILES.iter().enumerate() {
        let name = format!("tmf/weights/{}.safetensors", at + 1);
        let file = Safetensors::from_bytes(bytes.to_vec(), Path::new(&name))?;
        let histories = file.metadata().and_then(|entries| entries.get(HISTORIES));
        let histories: BTreeMap<String, String> = histories
            .map_or(Ok(BTreeMap::new()), |text| serde_json::from_str(text))
            .map_err(|error| wrong(&name, &error))?;
        let Some(history) = histories.get(id) else { continue };
        let history = serde_json::from_str(history).map_err(|error| wrong(&name, &error))?;
        let prefix = format!("{id}/");
        let mut tensors = BTreeMap::new();
        for own in file.tensor_names().filter_map(|name| name.strip_prefix(&prefix)) {
            let tensor = file.tensor(&format!("{prefix}{own}"))?.to_tensor()?;
            tensors.insert(own.to_owned(), tensor);
        }
        return Ok(Some((tensors, history)));
    }
    Ok(None)
}

/// Writes the crate's files into `folder`, each piece into the first file with room for it.
///
/// # Errors
/// [`Error::Usage`] when the pieces do not fit; [`Error::Io`].
pub fn write(folder: &Path, pieces: Vec<Piece>) -> Result<()> {
    let mut files: [Vec<Piece>; FILES.len()] = Default::default();
    let mut room = [MOST; FILES.len()];
    for piece in pieces {
        let size = piece.tensors.values().map(|tensor| 4 * tensor.elem_count()).sum::<usize>();
        let Some(at) = room.iter().position(|&room| size <= room) else {
            let problem =
                format!("{} does not fit into {} files of {MOST} bytes", piece.id, FILES.len());
            return Err(Error::usage(problem));
        };
        room[at] -= size;
        files[at].push(piece);
    }
    for (at, pieces) in files.into_iter().enumerate() {
        let path = folder.join(format!("{}.safetensors", at + 1));
        let failed = |error: &dyn std::fmt::Display| wrong(&path.display().to_string(), error);
        let histories: BTreeMap<&str, &str> =
            pieces.iter().map(|piece| (piece.id.as_str(), piece.history.as_str())).collect();
        let histories = serde_json::to_string(&histories).map_err(|error| failed(&error))?;
        let header = HashMap::from([(HISTORIES.to_owned(), histories)]);
        let named = pieces.iter().flat_map(|piece| {
            piece.tensors.iter().map(|(name, tensor)| (format!("{}/{name}", piece.id), tensor))
        });
        let bytes = safetensors::serialize(named, Some(header)).map_err(|error| failed(&error))?;
        atomic_write(&path, &bytes)?;
    }
    Ok(())
}
