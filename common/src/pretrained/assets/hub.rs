//! Files of a Hugging Face hub, through hf-hub, in the cache folder that its other clients share.
//!
//! hf-hub neither retries, nor checks what it received, nor looks at the names that a server sends
//! and that it turns into paths. All of that happens here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use super::{AssetOptions, Progress, Step, safe_relative, verify};
use crate::{Error, Result};

/// Attempts per file when the hub answers 429 or 5xx, breaks off, or sends damaged bytes.
const ATTEMPTS: u32 = 4;

/// The path of `file` at `revision` of `repo`. See [`super::Assets::hub_file`].
pub(super) fn file(
    options: &AssetOptions,
    repo: &str,
    revision: &str,
    file: &str,
) -> Result<PathBuf> {
    let request = Request::new(options, repo, revision, file)?;
    if let Some(path) = request.cached()? {
        return Ok(path);
    }
    if options.offline {
        return Err(request.error(
            "it is not in the hub cache, and offline mode forbids fetching it",
            "run the same command once without --offline",
        ));
    }
    let api = request.api(options)?;
    let mut wait = Duration::from_millis(250);
    let mut attempt = 1;
    loop {
        match request.download(options, &api) {
            Ok(path) => return Ok(path),
            Err(Failure::MayPass(_)) if attempt < ATTEMPTS => {
                std::thread::sleep(wait);
                wait *= 2;
                attempt += 1;
            }
            Err(Failure::MayPass(error) | Failure::Final(error)) => return Err(error),
        }
    }
}

enum Failure {
    MayPass(Error),
    Final(Error),
}

struct Request<'a> {
    repo: &'a str,
    revision: &'a str,
    file: &'a str,
    /// Where `verify` keeps its notes.
    notes: &'a Path,
    cache: Cache,
    hub_repo: Repo,
}

impl<'a> Request<'a> {
    fn new(
        options: &'a AssetOptions,
        repo: &'a str,
        revision: &'a str,
        file: &'a str,
    ) -> Result<Self> {
        for name in [repo, revision, file] {
            safe_relative(name)?;
        }
        let cache = options.hub_cache.clone().map_or_else(Cache::from_env, Cache::new);
        let hub_repo = Repo::with_revision(repo.to_owned(), RepoType::Model, revision.to_owned());
        Ok(Self { repo, revision, file, notes: &options.cache, cache, hub_repo })
    }

    fn error(&self, problem: impl Into<String>, remedy: impl Into<String>) -> Error {
        let what = format!("{} of {}@{} on the model hub", self.file, self.repo, self.revision);
        Error::asset(what, problem, remedy)
    }

    fn folder(&self) -> PathBuf {
        self.cache.path().join(self.hub_repo.folder_name())
    }

    /// The file in the hub cache, verified. The commit comes from the revision's ref, or is the
    /// revision itself.
    fn cached(&self) -> Result<Option<PathBuf>> {
        let by_ref = std::fs::read_to_string(self.folder().join("refs").join(self.revision)).ok();
        let commits = by_ref.iter().map(|text| text.trim()).chain([self.revision]);
        for commit in commits.filter(|commit| safe_relative(commit).is_ok()) {
            let path = self.folder().join("snapshots").join(commit).join(self.file);
            if path.exists() {
                self.check(&path, None).map_err(|failure| match failure {
                    Failure::MayPass(error) | Failure::Final(error) => error,
                })?;
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Refuses a file that lies outside of the repository's folder, or whose bytes are not those
    /// that its blob is named after (git-LFS files are named by their sha256).
    fn check(&self, path: &Path, size: Option<u64>) -> Result<(), Failure> {
        let io = |path: &Path, error| Failure::Final(Error::io(path)(error));
        let real = path.canonicalize().map_err(|error| io(path, error))?;
        let folder = self.folder();
        let root = folder.canonicalize().map_err(|error| io(&folder, error))?;
        if !real.starts_with(&root) {
            return Err(Failure::Final(self.error(
                format!("{} leads to {}, outside of its folder", path.display(), real.display()),
                "delete that link and fetch again",
            )));
        }
        let found = std::fs::metadata(&real).map_err(|error| io(&real, error))?.len();
        if let Some(expected) = size.filter(|size| *size != found) {
            return Err(Failure::MayPass(self.error(
                format!("found {found} bytes, expected {expected}"),
                "the transfer was damaged: try again",
            )));
        }
        let name = real.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_sha256 = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_sha256 || verify::is_remembered(self.notes, name, &real) {
            return Ok(());
        }
        let sha256 = verify::sha256(&real, |_| ()).map_err(|error| io(&real, error))?;
        if sha256 != name {
            return Err(Failure::MayPass(self.error(
                format!("{} holds bytes with sha256 {sha256}, expected {name}", real.display()),
                "the file was changed or damaged: delete it and fetch again",
            )));
        }
        verify::remember(self.notes, name, &real);
        Ok(())
    }

    fn api(&self, options: &AssetOptions) -> Result<Api> {
        let mut builder = ApiBuilder::from_env()
            .with_progress(false)
            .with_cache_dir(self.cache.path().clone())
            .with_user_agent("septet", env!("CARGO_PKG_VERSION"));
        if let Some(endpoint) = &options.hub {
            builder = builder.with_endpoint(endpoint.clone());
        }
        if let Some(token) = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty()) {
            builder = builder.with_token(Some(token));
        }
        builder.build().map_err(|error| {
            self.error(format!("the hub client did not start ({error})"), "check HF_ENDPOINT")
        })
    }

    fn download(&self, options: &AssetOptions, api: &Api) -> Result<PathBuf, Failure> {
        let repo = api.repo(self.hub_repo.clone());
        let metadata =
            guarded(|| api.metadata(&repo.url(self.file))).map_err(|error| self.failure(error))?;
        // Both become parts of paths.
        let etag = metadata.etag().strip_prefix("W/").unwrap_or(metadata.etag());
        let is_token = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if !is_token(etag) || !is_token(metadata.commit_hash()) {
            return Err(Failure::Final(self.error(
                format!(
                    "the server sent ETag {:?} and commit {:?}, which are not plain names",
                    metadata.etag(),
                    metadata.commit_hash()
                ),
                "check HF_ENDPOINT",
            )));
        }
        let size = metadata.size() as u64;
        let progress = Bytes { options, repo: self.repo, done: 0, total: size };
        let blob = self.folder().join("blobs").join(metadata.etag());
        // A piece left by a broken transfer is not trusted, and an old blob not resumed into.
        let piece = blob.with_extension("part");
        let path =
            guarded(|| repo.download_with_progress(self.file, progress)).map_err(|error| {
                let _ = std::fs::remove_file(&piece);
                self.failure(error)
            })?;
        self.check(&path, Some(size)).inspect_err(|_| {
            let _ = std::fs::remove_file(&path);
            let _ = std::fs::remove_file(&blob);
        })?;
        Ok(path)
    }

    fn failure(&self, error: Problem) -> Failure {
        let api_error = match error {
            Problem::Api(error) => error,
            Problem::Panic => {
                return Failure::Final(
                    self.error("the hub's answer is malformed", "check HF_ENDPOINT"),
                );
            }
        };
        let status = match &api_error {
            ApiError::RequestError(error) => match error.as_ref() {
                ureq::Error::StatusCode(code) => Some(*code),
                _ => None,
            },
            _ => None,
        };
        match (status, &api_error) {
            (Some(404), _) => Failure::Final(self.error(
                "the hub has no such file (404)",
                "check the repository's name, the revision and the file name",
            )),
            (Some(code @ (401 | 403)), _) => Failure::Final(self.error(
                format!("the hub refused it ({code}): private, gated or misspelt"),
                "accept the model's terms on its page and set HF_TOKEN",
            )),
            (Some(code), _) if code != 429 && code < 500 => {
                Failure::Final(self.error(
                    format!("the hub answered {code}"),
                    "check HF_ENDPOINT and the revision",
                ))
            }
            (_, ApiError::LockAcquisition(_)) => Failure::MayPass(
                self.error("another process holds its lock", "wait until that download is done"),
            ),
            (None, ApiError::MissingHeader(_) | ApiError::InvalidHeader(_)) => {
                Failure::Final(self.error(
                    format!("the server does not answer like a model hub ({api_error})"),
                    "check HF_ENDPOINT",
                ))
            }
            _ => Failure::MayPass(self.error(
                format!("it can't be fetched ({api_error})"),
                "check the network and HF_ENDPOINT, or put the files into a local folder",
            )),
        }
    }
}

enum Problem {
    Api(ApiError),
    Panic,
}

/// hf-hub unwraps parts of what a server sends.
fn guarded<T>(call: impl FnOnce() -> std::result::Result<T, ApiError>) -> Result<T, Problem> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(Problem::Api),
        Err(_) => Err(Problem::Panic),
    }
}

struct Bytes<'a> {
    options: &'a AssetOptions,
    repo: &'a str,
    done: u64,
    total: u64,
}

impl hf_hub::api::Progress for Bytes<'_> {
    fn init(&mut self, _: usize, _: &str) {
        self.done = 0;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        if let Some(progress) = &self.options.progress {
            let total = Some(self.total);
            progress(&Progress { asset: self.repo, step: Step::Download, done: self.done, total });
        }
    }

    fn finish(&mut self) {}
}
