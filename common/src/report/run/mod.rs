//! Run folders: manifest, metrics, logs, lock, progress, signals.
//!
//! A run lives in `<out>/<crate>/<UTC>-<profile>-<hash8>/`, where `hash8` is that of the resolved
//! config. Files that other programs read are written under another name first and renamed, so
//! that they are never half there.

mod folder;
pub(crate) mod log;
mod progress;
mod redact;
pub(crate) mod signal;
mod time;

use std::process::Command;

use sha2::{Digest, Sha256};

pub use folder::{Manifest, RunFolder, RunSpec, Status};
pub use log::bars;
pub use progress::{Progress, progress};
pub use redact::redact;
pub use signal::{check_interrupt, interrupted};
pub use time::utc;

/// Commit of the working tree around the current folder, with `+` appended when tracked files
/// differ from it; `None` without git.
pub fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let mut commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    if !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty() {
        commit.push('+');
    }
    Some(commit)
}

/// First 8 hexadecimal digits of the SHA-256 of `bytes`.
pub fn hash8(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}
