//! Sizes and hashes, and the note that a file was verified already.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::PinnedFile;

/// Why a file is not the pinned one.
#[derive(Debug)]
pub(super) enum Problem {
    Size { found: u64, expected: u64 },
    Hash { found: String, expected: String },
    Io(std::io::Error),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Size { found, expected } => {
                write!(f, "found {found} bytes, expected {expected}")
            }
            Self::Hash { found, expected } => {
                write!(f, "found sha256 {found}, expected {expected}")
            }
            Self::Io(error) => write!(f, "it can't be read: {error}"),
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn check_size(file: &PinnedFile, path: &Path) -> Result<(), Problem> {
    let found = std::fs::metadata(path).map_err(Problem::Io)?.len();
    if found == file.size { Ok(()) } else { Err(Problem::Size { found, expected: file.size }) }
}

pub(super) fn check_hash(
    file: &PinnedFile,
    path: &Path,
    report: impl Fn(u64),
) -> Result<(), Problem> {
    check_size(file, path)?;
    let found = sha256(path, report).map_err(Problem::Io)?;
    if found == file.sha256 {
        Ok(())
    } else {
        Err(Problem::Hash { found, expected: file.sha256.to_owned() })
    }
}

/// The sha256 of the file at `path` in hex.
pub(super) fn sha256(path: &Path, report: impl Fn(u64)) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
        done += read as u64;
        report(done);
    }
}

/// What changes when a file's content is written: size, modification time, and on Unix the inode
/// and the status-change time, which user programs can't set back.
fn fingerprint(sha256: &str, path: &Path) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    let modified = metadata.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    #[cfg(unix)]
    let identity = {
        use std::os::unix::fs::MetadataExt;
        (metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
    };
    #[cfg(not(unix))]
    let identity = ();
    Some(format!("{sha256} {} {} {identity:?}", metadata.len(), modified.as_nanos()))
}

fn note_path(cache: &Path, path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    let name = hex(&Sha256::digest(absolute.as_os_str().as_encoded_bytes())[..16]);
    Some(cache.join("verified").join(name))
}

/// Whether `path` was verified before and has not been written since.
pub(super) fn is_remembered(cache: &Path, sha256: &str, path: &Path) -> bool {
    let (Some(note), Some(now)) = (note_path(cache, path), fingerprint(sha256, path)) else {
        return false;
    };
    std::fs::read_to_string(note).is_ok_and(|then| then == now)
}

/// Notes that `path` was verified. Failure is harmless: the file is hashed again next time.
pub(super) fn remember(cache: &Path, sha256: &str, path: &Path) {
    if let (Some(note), Some(now)) = (note_path(cache, path), fingerprint(sha256, path)) {
        let written = note
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&note, now));
        if let Err(error) = written {
            tracing::debug!("{} was not noted as verified: {error}", path.display());
        }
    }
}
