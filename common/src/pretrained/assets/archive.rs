//! Taking one member out of a wheel (zip) or an npm package (tar.gz) that may be hostile.
//!
//! Members are written to a file that the caller chose, so no name from an archive ever becomes a
//! path. An archive that holds an unsafe name or a link is refused all the same: no honest package
//! has one.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Component, Path, PathBuf};

use flate2::read::GzDecoder;

use crate::{Error, Result};

/// A tar stream longer than this is a decompression bomb.
const MAX_UNPACKED: u64 = 2 << 30;

/// `name` as a relative path that stays inside the folder it is joined to.
///
/// # Errors
/// [`Error::Asset`] for an empty name, an absolute path, `..` or `.` as a component, a backslash
/// or a NUL byte.
pub fn safe_relative(name: &str) -> Result<PathBuf> {
    let path = Path::new(name);
    let plain = !name.is_empty()
        && !name.contains(['\0', '\\'])
        && !name.starts_with("./")
        && path.components().all(|component| matches!(component, Component::Normal(_)));
    if plain {
        Ok(path.to_path_buf())
    } else {
        Err(Error::asset(
            format!("the name {name:?}"),
            "it could lead out of its folder",
            "do not use this package; names have to be plain relative paths",
        ))
    }
}

/// Copies `member` of the zip file `archive` to `out`, at most `limit` bytes.
pub(super) fn unzip(archive: &Path, member: &str, limit: u64, out: &mut dyn Write) -> Result<u64> {
    let refuse = |problem: String| refuse(archive, problem);
    let file = File::open(archive).map_err(Error::io(archive))?;
    let mut zip = zip::ZipArchive::new(BufReader::new(file))
        .map_err(|error| refuse(format!("it is not a readable zip file ({error})")))?;
    for index in 0..zip.len() {
        let entry = zip
            .by_index_raw(index)
            .map_err(|error| refuse(format!("member {index} is not readable ({error})")))?;
        let name = entry.name().map_err(|error| {
            refuse(format!("the name of member {index} is not readable ({error})"))
        })?;
        check_name(archive, name.trim_end_matches('/'))?;
        if entry.is_symlink() {
            return Err(refuse(format!("member {name:?} is a link")));
        }
    }
    let entry = zip
        .by_name(member)
        .map_err(|error| refuse(format!("member {member} is not readable ({error})")))?;
    copy_limited(entry, limit, out)
        .map_err(|error| refuse(format!("member {member} does not unpack: {error}")))
}

/// Copies `member` of the tar.gz file `archive` to `out`, at most `limit` bytes.
pub(super) fn untar(archive: &Path, member: &str, limit: u64, out: &mut dyn Write) -> Result<u64> {
    let refuse = |problem: String| refuse(archive, problem);
    let unreadable =
        |error: std::io::Error| refuse(format!("it is not a readable tar.gz ({error})"));
    let file = File::open(archive).map_err(Error::io(archive))?;
    let stream = Bounded { inner: GzDecoder::new(BufReader::new(file)), left: MAX_UNPACKED };
    let mut tar = tar::Archive::new(stream);
    let mut written = None;
    for entry in tar.entries().map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = String::from_utf8(entry.path_bytes().into_owned())
            .map_err(|_| refuse("a member's name is not UTF-8".to_owned()))?;
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        check_name(archive, name.trim_end_matches('/'))?;
        if !kind.is_file() && !kind.is_dir() {
            return Err(refuse(format!("member {name:?} is a link or a device")));
        }
        if kind.is_file() && name == member && written.is_none() {
            let copied = copy_limited(entry, limit, out)
                .map_err(|error| refuse(format!("member {member} does not unpack: {error}")))?;
            written = Some(copied);
        }
    }
    written.ok_or_else(|| refuse(format!("it has no member {member}")))
}

fn check_name(archive: &Path, name: &str) -> Result<()> {
    safe_relative(name).map(drop).map_err(|_| {
        refuse(archive, format!("member {name:?} could lead out of the folder it is unpacked to"))
    })
}

fn refuse(archive: &Path, problem: String) -> Error {
    let name = archive.file_name().unwrap_or(archive.as_os_str()).to_string_lossy();
    Error::asset(
        format!("package {name}"),
        problem,
        "nothing was unpacked; fetch again, and report it if it stays so",
    )
}

fn copy_limited(input: impl Read, limit: u64, out: &mut dyn Write) -> std::io::Result<u64> {
    let copied = std::io::copy(&mut input.take(limit.saturating_add(1)), out)?;
    if copied > limit {
        return Err(std::io::Error::other(format!("it is longer than the pinned {limit} bytes")));
    }
    Ok(copied)
}

/// Fails, instead of ending, when the stream is longer than allowed.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| std::io::Error::other("it unpacks to more than 2 GiB"))?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn zip_with(name: &str, content: &[u8]) -> tempfile::NamedTempFile {
        let mut bytes = Cursor::new(Vec::new());
        let mut writer = zip::ZipWriter::new(&mut bytes);
        writer.start_file("good.txt", zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(b"good").unwrap();
        writer.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
        writer.finish().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes.into_inner()).unwrap();
        file
    }

    fn tar_with(name: &[u8], kind: tar::EntryType, link: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let gz = flate2::write::GzEncoder::new(file.reopen().unwrap(), flate2::Compression::fast());
        let mut builder = tar::Builder::new(gz);
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_path("package/good.txt").unwrap();
        header.set_cksum();
        builder.append(&header, &b"good"[..]).unwrap();
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(0);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
        builder.into_inner().unwrap().finish().unwrap();
        file
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["../x", "/abs", "a/../../x", "a\0b", "", ".", "..", "./a", "a\\b", "a/.."] {
            assert!(safe_relative(name).is_err(), "{name:?} was accepted");
        }
        assert_eq!(safe_relative("a/b.txt").unwrap(), Path::new("a/b.txt"));
        assert_eq!(safe_relative("a..b").unwrap(), Path::new("a..b"));
    }

    #[test]
    fn a_zip_with_an_unsafe_name_is_refused() {
        for name in ["../x", "/abs", "a/../../x", "a\0b"] {
            let file = zip_with(name, b"bad");
            let error = unzip(file.path(), "good.txt", 4, &mut Vec::new()).unwrap_err();
            assert_eq!(error.exit_code(), 4, "{name:?}: {error}");
        }
        let mut out = Vec::new();
        unzip(zip_with("sub/x", b"bad").path(), "good.txt", 4, &mut out).unwrap();
        assert_eq!(out, b"good");
    }

    #[test]
    fn a_zip_with_a_link_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = zip::ZipWriter::new(file.reopen().unwrap());
        let options = zip::write::SimpleFileOptions::default();
        writer.start_file("good.txt", options).unwrap();
        writer.add_symlink("link", "/etc/passwd", options).unwrap();
        writer.finish().unwrap();
        let error = unzip(file.path(), "good.txt", 4, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("is a link"), "{error}");
    }

    #[test]
    fn a_member_longer_than_pinned_is_refused() {
        let file = zip_with("bomb", &vec![0; 1 << 20]);
        let mut out = Vec::new();
        let error = unzip(file.path(), "bomb", 1000, &mut out).unwrap_err();
        assert!(error.to_string().contains("longer than the pinned 1000 bytes"), "{error}");
        assert!(out.len() <= 1001);
    }

    #[test]
    fn a_tar_with_an_unsafe_name_or_a_link_is_refused() {
        use tar::EntryType;
        for name in [&b"../x"[..], b"/abs", b"a/../../x"] {
            let file = tar_with(name, EntryType::Regular, "");
            let error = untar(file.path(), "package/good.txt", 4, &mut Vec::new()).unwrap_err();
            assert!(error.to_string().contains("could lead out"), "{error}");
        }
        for kind in [EntryType::Symlink, EntryType::Link] {
            let file = tar_with(b"package/link", kind, "/etc/passwd");
            let error = untar(file.path(), "package/good.txt", 4, &mut Vec::new()).unwrap_err();
            assert!(error.to_string().contains("is a link"), "{error}");
        }
        let file = tar_with(b"package/other", EntryType::Regular, "");
        let mut out = Vec::new();
        untar(file.path(), "package/good.txt", 4, &mut out).unwrap();
        assert_eq!(out, b"good");
    }

    #[test]
    fn a_stream_that_never_ends_is_stopped() {
        let mut bounded = Bounded { inner: std::io::repeat(0), left: 1000 };
        let error = std::io::copy(&mut bounded, &mut std::io::sink()).unwrap_err();
        assert!(error.to_string().contains("unpacks to more than"), "{error}");
    }
}
