//! Run folders: manifest, metrics, logs, lock, progress, signals.

pub(crate) mod log;
mod redact;
pub(crate) mod signal;

use std::process::Command;

use sha2::{Digest, Sha256};

pub use redact::redact;
pub use signal::{check_interrupt, interrupted};

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
