//! Writing files so that a reader never sees half of one.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

/// Writes `bytes` to `path`, atomically: a reader sees the old file or the new one, never a part.
///
/// # Errors
/// [`Error::Io`]; the old file is untouched and nothing is left behind.
pub fn atomic_write(path: &Path, bytes: &[u8]) -> Result<()> {
    atomic_with(path, |file| file.write_all(bytes))
}

/// Lets `fill` write a temporary file beside `path`, flushes it to disk and renames it to `path`.
///
/// # Errors
/// [`Error::Io`]; the old file is untouched and nothing is left behind.
pub fn atomic_with(path: &Path, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    let write = || {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".septet-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // The umask takes its share, as for any new file; a temporary file would be private.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let mut temporary = builder.tempfile_in(folder)?;
        fill(temporary.as_file_mut())?;
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|error| error.error)?;
        #[cfg(unix)]
        File::open(folder)?.sync_all()?;
        Ok(())
    };
    write().map_err(Error::io(path))
}
