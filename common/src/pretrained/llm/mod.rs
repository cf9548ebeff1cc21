//! Frozen LLMs for prompting: local GGUF and safetensors models, OpenAI-compatible endpoints, and
//! recordings, behind one type.
//!
//! ```no_run
//! use common::llm::{Llm, LlmOptions, Message, Request};
//!
//! # fn main() -> common::Result<()> {
//! let spec = "openai:http://localhost:8000/v1#my-model".parse()?;
//! let llm = Llm::open(&spec, &LlmOptions::default())?;
//! let request = Request::new(vec![Message::user("Name three colours.")]).max_tokens(40);
//! let text = llm.generate(&request)?.into_text()?;
//! # Ok(())
//! # }
//! ```

mod cache;
mod endpoint;
pub mod engine;
mod request;
mod spec;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use endpoint::{ApiKey, EndpointOptions};
pub use request::{Answer, Content, Finish, Message, Prompt, Request, Role, Usage};
pub use spec::LlmSpec;

use crate::assets::Assets;
use crate::{Error, Result};
use cache::{AnswerFile, Key};
use endpoint::Endpoint;

/// How an [`Llm`] is opened.
#[derive(Clone)]
pub struct LlmOptions {
    /// Where `gguf:ASSET-ID` and `hf:REPO` come from. With its `offline` set no socket is opened:
    /// endpoints answer from the cache only.
    pub assets: Assets,
    /// Folder of the answer cache, one file of JSON lines per model; `None` turns it off.
    /// Finished answers are kept there across runs and processes; failures never are.
    pub cache: Option<PathBuf>,
    /// Every finished answer that is handed out is also written to this file, which `replay:`
    /// reads.
    pub record: Option<PathBuf>,
    /// Patience and key of endpoints.
    pub endpoint: EndpointOptions,
}

impl std::fmt::Debug for LlmOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LlmOptions")
            .field("cache", &self.cache)
            .field("record", &self.record)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl LlmOptions {
    /// The answer cache in the folder `answers` of the assets' cache, no recording.
    pub fn new(assets: Assets) -> Self {
        Self {
            cache: Some(assets.options().cache.join("answers")),
            record: None,
            endpoint: EndpointOptions::default(),
            assets,
        }
    }
}

impl Default for LlmOptions {
    /// With [`Assets::from_env`].
    fn default() -> Self {
        Self::new(Assets::from_env())
    }
}

/// How probable one continuation is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptionScore {
    /// Natural logarithm of the probability of the whole continuation: the sum over its tokens.
    pub log_prob: f64,
    /// Natural logarithm of each token's probability, given all tokens before it.
    pub token_log_probs: Vec<f64>,
}

impl OptionScore {
    /// `log_prob` divided by the number of tokens, which does not favour short options.
    pub fn mean_log_prob(&self) -> f64 {
        self.log_prob / self.token_log_probs.len() as f64
    }
}

/// A frozen LLM. Shared by threads.
#[derive(Debug)]
pub struct Llm {
    name: String,
    /// What decides the model's answers, for the cache: local files by their content.
    identity: String,
    backend: Backend,
    cache: Option<AnswerFile>,
    record: Option<AnswerFile>,
    offline: bool,
}

#[derive(Debug)]
enum Backend {
    Endpoint(Box<Endpoint>),
    Replay(AnswerFile),
}

impl Llm {
    /// Loads a local model, or prepares to ask an endpoint (without contacting it).
    ///
    /// Errors: a missing or invalid model file ([`Error::Asset`]), an unreadable cache or
    /// recording ([`Error::Io`]), a recording of several models without a choice
    /// ([`Error::Usage`]).
    pub fn open(spec: &LlmSpec, options: &LlmOptions) -> Result<Self> {
        let name = spec.to_string();
        let (backend, identity) = match spec {
            LlmSpec::Endpoint { base, model } => {
                let endpoint = Endpoint::new(base, model, &options.endpoint)?;
                (Backend::Endpoint(Box::new(endpoint)), name.clone())
            }
            LlmSpec::Replay { file, model } => {
                let recording = AnswerFile::read(file)?;
                let identity = recorded_model(&recording, model.as_deref(), &name)?;
                (Backend::Replay(recording), identity)
            }
            LlmSpec::Gguf(_) | LlmSpec::Hf { .. } => {
                return Err(Error::usage(format!("{name}: local models are not available yet")));
            }
        };
        let cache = match (&backend, &options.cache) {
            (Backend::Replay(_), _) | (_, None) => None,
            (_, Some(folder)) => Some(AnswerFile::open(&folder.join(cache_name(&identity)))?),
        };
        let record = options.record.as_deref().map(AnswerFile::open).transpose()?;
        Ok(Self {
            name,
            identity,
            backend,
            cache,
            record,
            offline: options.assets.options().offline,
        })
    }

    /// The spec as it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's answer to `request`, from the cache if it was answered before.
    ///
    /// An answer that is not [`Answer::complete`] is returned, but never cached.
    ///
    /// Errors: [`Error::LlmOutput`] when this one request can't be answered (refused, reply
    /// unusable); [`Error::Temporary`] when the endpoint is down beyond the budget;
    /// [`Error::Usage`] for a request out of range or an endpoint that accepts none;
    /// [`Error::Asset`] when there is no recorded answer and no way to ask.
    pub fn generate(&self, request: &Request) -> Result<Answer> {
        self.generate_until(request, &AtomicBool::new(false))
    }

    fn generate_until(&self, request: &Request, cancel: &AtomicBool) -> Result<Answer> {
        request.check()?;
        let canonical = request.canonical();
        let key = Key::of(&canonical);
        if let Some(answer) = self.known(key)? {
            let answer = Answer { cached: true, ..answer };
            return self.recorded(key, &canonical, answer);
        }
        let claim = match &self.cache {
            Some(cache) => Some(cache.claim(&self.identity, key, self.claim_deadline())?),
            None => None,
        };
        if claim.is_some()
            && let Some(answer) = self.known(key)?
        {
            let answer = Answer { cached: true, ..answer };
            return self.recorded(key, &canonical, answer);
        }
        let answer = match &self.backend {
            Backend::Endpoint(_) if self.offline => return Err(self.unknown("--offline is set")),
            Backend::Endpoint(endpoint) => endpoint.ask(request, cancel)?,
            Backend::Replay(_) => return Err(self.unknown("it is not in the recording")),
        };
        if answer.complete()
            && let Some(cache) = &self.cache
        {
            cache.put(&self.identity, key, &canonical, &answer)?;
        }
        drop(claim);
        self.recorded(key, &canonical, answer)
    }

    /// Generates for all requests, `in_flight` at a time for endpoints, one after the other for
    /// local models. `each` gets the request's index and its answer on the calling thread, as the
    /// answers come in, so it can store each at once.
    ///
    /// [`Error::LlmOutput`] concerns one request and goes to `each`. Any other error ends the
    /// batch: nothing new is asked, answers already under way still go to `each`, and the error
    /// is returned. An error returned by `each` ends it the same way.
    pub fn generate_many(
        &self,
        requests: &[Request],
        in_flight: usize,
        mut each: impl FnMut(usize, Result<Answer>) -> Result<()>,
    ) -> Result<()> {
        let workers = match &self.backend {
            Backend::Endpoint(_) => in_flight.clamp(1, requests.len().max(1)),
            Backend::Replay(_) => 1,
        };
        let next = AtomicUsize::new(0);
        let cancel = AtomicBool::new(false);
        let mut failure = None;
        std::thread::scope(|scope| {
            let (sender, answers) = mpsc::channel();
            for _ in 0..workers {
                let sender = sender.clone();
                let (next, cancel) = (&next, &cancel);
                scope.spawn(move || {
                    while !cancel.load(Ordering::Relaxed) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(request) = requests.get(index) else { break };
                        let answer = self.generate_until(request, cancel);
                        if sender.send((index, answer)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            for (index, answer) in answers {
                let result = match answer {
                    Ok(answer) => each(index, Ok(answer)),
                    Err(error @ Error::LlmOutput(_)) => each(index, Err(error)),
                    Err(error) => Err(error),
                };
                if let Err(error) = result {
                    cancel.store(true, Ordering::Relaxed);
                    failure.get_or_insert(error);
                }
            }
        });
        failure.map_or(Ok(()), Err)
    }

    /// Log-probability of every option as the continuation of `prompt`, in the order given.
    ///
    /// Only local models know token probabilities: [`Error::Usage`] for an endpoint.
    pub fn score_options(&self, prompt: &Prompt, options: &[String]) -> Result<Vec<OptionScore>> {
        if options.is_empty() || options.iter().any(String::is_empty) {
            return Err(Error::usage("score_options needs options, none of them empty"));
        }
        let canonical: Value = prompt.canonical(options);
        let key = Key::of(&canonical);
        match &self.backend {
            Backend::Endpoint(_) => Err(Error::usage(format!(
                "{}: endpoints do not tell the probability of given options; use generate, or a \
                 gguf: or hf: model",
                self.name
            ))),
            Backend::Replay(file) => file
                .get(&self.identity, key)?
                .ok_or_else(|| self.unknown("it is not in the recording")),
        }
    }

    fn known(&self, key: Key) -> Result<Option<Answer>> {
        match (&self.backend, &self.cache) {
            (Backend::Replay(file), _) | (_, Some(file)) => file.get(&self.identity, key),
            _ => Ok(None),
        }
    }

    fn recorded(&self, key: Key, request: &Value, answer: Answer) -> Result<Answer> {
        if answer.complete()
            && let Some(record) = &self.record
            && record.get::<Answer>(&self.identity, key)?.is_none()
        {
            record.put(&self.identity, key, request, &answer)?;
        }
        Ok(answer)
    }

    fn unknown(&self, why: &str) -> Error {
        Error::asset(
            &self.name,
            format!("no answer to this request is known and {why}"),
            "ask once with the model at hand",
        )
    }

    fn claim_deadline(&self) -> Instant {
        let patience = match &self.backend {
            Backend::Endpoint(endpoint) => endpoint.budget(),
            Backend::Replay(_) => Duration::ZERO,
        };
        Instant::now() + patience + Duration::from_secs(5)
    }
}

fn recorded_model(recording: &AnswerFile, wanted: Option<&str>, name: &str) -> Result<String> {
    let models = recording.models();
    match (wanted, models.as_slice()) {
        (Some(wanted), models) if models.iter().any(|model| model == wanted) => {
            Ok(wanted.to_owned())
        }
        (None, [model]) => Ok(model.clone()),
        (None, []) => Err(Error::asset(
            name,
            "the file holds no recorded answer",
            "record one by running with the model at hand",
        )),
        (_, models) => Err(Error::usage(format!(
            "{name}: the recording holds answers of {}; name one as replay:FILE#MODEL",
            models.join(", ")
        ))),
    }
}

/// A readable file name that differs whenever the identity does.
fn cache_name(identity: &str) -> String {
    let digest = request::hex(&<sha2::Sha256 as sha2::Digest>::digest(identity));
    let readable: String = identity
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .take(60)
        .collect();
    format!("{readable}-{}.jsonl", &digest[..12])
}
