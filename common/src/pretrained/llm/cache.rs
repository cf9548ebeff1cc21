//! Finished answers on disk: an append-only file of JSON lines.
//!
//! One line is `{"key", "model", "request", "answer"}`; `key` is the SHA-256 of the request's
//! canonical JSON. The same format serves as the answer cache, as a recording and for `replay:`.
//!
//! **Durability.** A line is handed to the operating system in one write, under an exclusive file
//! lock, before the answer is returned: killing the process loses nothing that was returned. The
//! file is fsynced at most once a second and when it is closed, so a power cut may cost the last
//! second, after which those answers are asked again. A line counts only with its line feed and
//! only if it parses; what a killed writer left half-written is closed off by the next writer.
//!
//! **Once only.** [`AnswerFile::claim`] locks a request across threads and processes while it is
//! being asked; whoever waited finds the answer in the file.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::request::hex;
use crate::{Error, Result};

/// More lock files make it rarer that two different requests wait for each other.
const CLAIMS: u16 = 4096;
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// The hash of a request's canonical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl Key {
    pub(super) fn of(request: &Value) -> Self {
        Self(Sha256::digest(request.to_string()).into())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut key = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(key))
    }
}

#[derive(Serialize)]
struct LineOut<'a, T> {
    key: String,
    model: &'a str,
    request: &'a Value,
    answer: &'a T,
}

#[derive(Deserialize)]
struct LineIn<'a, T> {
    key: &'a str,
    #[serde(borrow)]
    model: std::borrow::Cow<'a, str>,
    answer: T,
}

/// A file of finished answers, shared by threads and processes.
#[derive(Debug)]
pub(super) struct AnswerFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` while the file does not exist, and for ever when it is only read.
    file: Option<File>,
    /// Model → key → place of the line.
    index: HashMap<String, HashMap<Key, Place>>,
    /// Everything before this offset is indexed.
    scanned: u64,
    synced: Instant,
    dirty: bool,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    len: usize,
}

/// The right to ask a request; dropped when the answer is in the file.
pub(super) struct Claim {
    _lock: File,
}

impl AnswerFile {
    /// Opens for reading and appending; the file and its folder are made on the first answer.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = match OpenOptions::new().read(true).append(true).open(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io(path)(error)),
        };
        Self::with(path, file)
    }

    /// Opens an existing recording for reading.
    pub(super) fn read(path: &Path) -> Result<Self> {
        Self::with(path, Some(File::open(path).map_err(Error::io(path))?))
    }

    fn with(path: &Path, file: Option<File>) -> Result<Self> {
        let state =
            State { file, index: HashMap::new(), scanned: 0, synced: Instant::now(), dirty: false };
        let this = Self { path: path.to_path_buf(), state: Mutex::new(state) };
        this.lock().scan(path)?;
        Ok(this)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Models that the file holds answers of, sorted.
    pub(super) fn models(&self) -> Vec<String> {
        let mut models: Vec<String> = self.lock().index.keys().cloned().collect();
        models.sort();
        models
    }

    /// The finished answer to `key`, also when another process wrote it a moment ago.
    pub(super) fn get<T: DeserializeOwned>(&self, model: &str, key: Key) -> Result<Option<T>> {
        let mut state = self.lock();
        if state.place(model, key).is_none() {
            state.reopen(&self.path, false)?;
            state.scan(&self.path)?;
        }
        let Some(place) = state.place(model, key) else { return Ok(None) };
        let Some(file) = state.file.as_mut() else { return Ok(None) };
        let mut line = vec![0; place.len];
        file.seek(SeekFrom::Start(place.offset)).map_err(Error::io(&self.path))?;
        file.read_exact(&mut line).map_err(Error::io(&self.path))?;
        // A line of another kind under the same key can only come from a hand-edited file.
        Ok(serde_json::from_slice::<LineIn<'_, T>>(&line).ok().map(|line| line.answer))
    }

    /// Appends a finished answer.
    pub(super) fn put<T: Serialize>(
        &self,
        model: &str,
        key: Key,
        request: &Value,
        answer: &T,
    ) -> Result<()> {
        let mut line = serde_json::to_vec(&LineOut { key: hex(&key.0), model, request, answer })
            .map_err(|error| Error::Bug(format!("answer as JSON: {error}")))?;
        line.push(b'\n');

        let mut state = self.lock();
        state.reopen(&self.path, true)?;
        state.append(line).map_err(Error::io(&self.path))?;
        state.scan(&self.path)
    }

    /// Waits until nobody else is asking `key`, at most until `deadline`.
    pub(super) fn claim(&self, model: &str, key: Key, deadline: Instant) -> Result<Claim> {
        let mut folder = self.path.clone().into_os_string();
        folder.push(".claims");
        let folder = PathBuf::from(folder);
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let digest = Sha256::new().chain_update(model).chain_update(key.0).finalize();
        let slot = u16::from_le_bytes([digest[0], digest[1]]) % CLAIMS;
        let path = folder.join(format!("{slot:03x}"));
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::io(&path))?;
        let mut pause = Duration::from_millis(1);
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Claim { _lock: lock }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::Temporary(format!(
                        "another process has been asking the same question for too long ({})",
                        path.display()
                    )));
                }
                Err(TryLockError::Error(error)) => return Err(Error::io(&path)(error)),
            }
        }
    }
}

impl State {
    fn place(&self, model: &str, key: Key) -> Option<Place> {
        self.index.get(model)?.get(&key).copied()
    }

    /// Opens the file if it has come into being meanwhile; `create` makes it.
    fn reopen(&mut self, path: &Path, create: bool) -> Result<()> {
        if self.file.is_some() || !(create || path.exists()) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let file = OpenOptions::new().read(true).append(true).create(create).open(path);
        self.file = Some(file.map_err(Error::io(path))?);
        Ok(())
    }

    fn append(&mut self, mut line: Vec<u8>) -> std::io::Result<()> {
        let Some(file) = self.file.as_mut() else { return Ok(()) };
        file.lock()?;
        let written = (|| {
            // Writers hold the lock, so a tail without line feed belongs to one that was killed.
            if file.seek(SeekFrom::End(0))? > 0 {
                file.seek(SeekFrom::End(-1))?;
                let mut last = [0];
                file.read_exact(&mut last)?;
                if last[0] != b'\n' {
                    line.insert(0, b'\n');
                }
            }
            file.write_all(&line)
        })();
        file.unlock()?;
        written?;
        self.dirty = true;
        if self.synced.elapsed() >= SYNC_INTERVAL {
            file.sync_data()?;
            self.synced = Instant::now();
            self.dirty = false;
        }
        Ok(())
    }

    /// Indexes the complete lines behind `scanned`.
    fn scan(&mut self, path: &Path) -> Result<()> {
        let Some(file) = self.file.as_mut() else { return Ok(()) };
        let length = file.metadata().map_err(Error::io(path))?.len();
        if length < self.scanned {
            // Somebody emptied the file: what was indexed is gone.
            self.index.clear();
            self.scanned = 0;
        }
        if length == self.scanned {
            return Ok(());
        }
        file.seek(SeekFrom::Start(self.scanned)).map_err(Error::io(path))?;
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(Error::io(path))?;
            if read == 0 || line.last() != Some(&b'\n') {
                return Ok(());
            }
            if let Ok(found) = serde_json::from_slice::<LineIn<'_, serde::de::IgnoredAny>>(&line)
                && let Some(key) = Key::parse(found.key)
            {
                let place = Place { offset: self.scanned, len: line.len() };
                // The first answer stays: what was returned once is returned again.
                self.index.entry(found.model.into_owned()).or_default().entry(key).or_insert(place);
            }
            self.scanned += read as u64;
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let (true, Some(file)) = (self.dirty, &self.file)
            && let Err(error) = file.sync_data()
        {
            tracing::warn!("answer cache: {error}");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn an_answer_is_found_again_by_this_and_by_another_handle() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/answers.jsonl");
        let (ours, theirs) = (AnswerFile::open(&path).unwrap(), AnswerFile::open(&path).unwrap());
        let request = json!({ "q": 1 });
        let key = Key::of(&request);
        assert_eq!(ours.get::<String>("m", key).unwrap(), None);
        ours.put("m", key, &request, &"yes").unwrap();
        assert_eq!(ours.get("m", key).unwrap(), Some("yes".to_owned()));
        assert_eq!(theirs.get("m", key).unwrap(), Some("yes".to_owned()));
        assert_eq!(theirs.get::<String>("other", key).unwrap(), None);
        assert_eq!(AnswerFile::read(&path).unwrap().models(), ["m"]);
    }

    #[test]
    fn a_file_cut_anywhere_keeps_its_whole_lines_and_takes_new_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let requests: Vec<Value> = (0..3).map(|n| json!({ "q": n })).collect();
        let whole = AnswerFile::open(&path).unwrap();
        for request in &requests {
            whole.put("m", Key::of(request), request, &format!("to {request}")).unwrap();
        }
        drop(whole);
        let bytes = std::fs::read(&path).unwrap();
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let complete = bytes[..cut].iter().filter(|&&byte| byte == b'\n').count();
            let file = AnswerFile::open(&path).unwrap();
            let extra = json!({ "q": "extra" });
            file.put("m", Key::of(&extra), &extra, &"new").unwrap();
            let again = AnswerFile::open(&path).unwrap();
            for (n, request) in requests.iter().enumerate() {
                let found: Option<String> = again.get("m", Key::of(request)).unwrap();
                // A line that lost only its line feed is whole again once the next one begins.
                let feed_lost = bytes[cut] == b'\n' && n == complete;
                assert_eq!(found.is_some(), n < complete || feed_lost, "cut {cut}, answer {n}");
            }
            assert_eq!(again.get("m", Key::of(&extra)).unwrap(), Some("new".to_owned()));
        }
    }

    #[test]
    fn claims_let_one_asker_through() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let request = json!({ "q": 1 });
        let key = Key::of(&request);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let file = AnswerFile::open(&path).unwrap();
                    let _claim = file.claim("m", key, later()).unwrap();
                    if file.get::<String>("m", key).unwrap().is_none() {
                        asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(5));
                        file.put("m", key, &request, &"a").unwrap();
                    }
                });
            }
        });
        assert_eq!(asked.into_inner(), 1);
    }

    #[test]
    fn the_first_answer_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = AnswerFile::open(&folder.path().join("a.jsonl")).unwrap();
        let request = json!(1);
        file.put("m", Key::of(&request), &request, &"first").unwrap();
        file.put("m", Key::of(&request), &request, &"second").unwrap();
        assert_eq!(file.get("m", Key::of(&request)).unwrap(), Some("first".to_owned()));
    }
}
