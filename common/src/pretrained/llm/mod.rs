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
mod constrain;
mod endpoint;
pub mod engine;
pub mod json;
mod local;
mod request;
mod sample;
mod spec;
mod template;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use endpoint::{ApiKey, EndpointOptions, ImageEndpoint};
pub use engine::{OptionScore, Precision};
pub use request::{Answer, Content, Finish, Message, Prompt, Request, Role, Usage};
pub use spec::LlmSpec;

use crate::assets::Assets;
use crate::optim::Workers;
use crate::run::check_interrupt;
use crate::{Error, Result};
use cache::{AnswerFile, Key};
use endpoint::Endpoint;
use local::Local;

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
    /// How local models hold their weights.
    pub precision: Precision,
    /// Local models read prompts with activations rounded to int8, which is llama.cpp's
    /// arithmetic, to compare texts with it. The default, f32, is nearer to the exact result of
    /// the weights.
    pub int8_prompts: bool,
    /// Patience and key of endpoints.
    pub endpoint: EndpointOptions,
}

impl std::fmt::Debug for LlmOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LlmOptions")
            .field("cache", &self.cache)
            .field("record", &self.record)
            .field("precision", &self.precision)
            .field("int8_prompts", &self.int8_prompts)
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
            precision: Precision::Auto,
            int8_prompts: false,
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
    Local(Box<Local>),
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
        let identity = |kind: &str, files: &[PathBuf]| -> Result<String> {
            if options.cache.is_none() && options.record.is_none() {
                return Ok(name.clone());
            }
            let sha256 = local::fingerprint(files)?;
            let prompts = if options.int8_prompts { "/int8-prompts" } else { "" };
            Ok(format!("{kind}:sha256-{sha256}/{:?}{prompts}", options.precision))
        };
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
            LlmSpec::Gguf(file) => {
                let path = local::gguf_file(file, &options.assets)?;
                let model = Local::from_gguf(&path, options.precision)?;
                let model = model.with_int8_prompts(options.int8_prompts);
                (Backend::Local(Box::new(model)), identity("gguf", &[path])?)
            }
            LlmSpec::Hf { repo, revision } => {
                let folder = local::hf_folder(repo, revision.as_deref(), &options.assets)?;
                let model = Local::from_hf(&folder, options.precision)?;
                let model = model.with_int8_prompts(options.int8_prompts);
                let files = ["config.json", "tokenizer.json", "model.safetensors"];
                let files = files.map(|file| folder.join(file));
                (Backend::Local(Box::new(model)), identity("hf", &files)?)
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
        let (answer, cached) =
            self.answer(&request.canonical(), Answer::complete, || match &self.backend {
                Backend::Local(model) => model.generate(request),
                Backend::Endpoint(_) if self.offline => Err(self.unknown("--offline is set")),
                Backend::Endpoint(endpoint) => endpoint.ask(request, cancel),
                Backend::Replay(_) => Err(self.unknown("it is not in the recording")),
            })?;
        Ok(Answer { cached, ..answer })
    }

    /// The finished answer to `request` from the cache, or else the one that `ask` gives, which
    /// is kept if it is `finished`. True when it was known.
    fn answer<T: Serialize + DeserializeOwned>(
        &self,
        request: &Value,
        finished: impl Fn(&T) -> bool,
        ask: impl FnOnce() -> Result<T>,
    ) -> Result<(T, bool)> {
        let key = Key::of(request);
        let model = self.identity.as_str();
        let known = || match (&self.backend, &self.cache) {
            (Backend::Replay(file), _) | (_, Some(file)) => file.get::<T>(model, key),
            _ => Ok(None),
        };
        // Looked up once more when nobody else is asking any longer.
        let (found, claim) = match (known()?, &self.cache) {
            (None, Some(cache)) => {
                let claim = cache.claim(model, key, self.claim_deadline())?;
                (known()?, Some(claim))
            }
            (found, _) => (found, None),
        };
        let cached = found.is_some();
        let answer = match found {
            Some(answer) => answer,
            None => ask()?,
        };
        if finished(&answer) {
            if !cached && let Some(cache) = &self.cache {
                cache.put(model, key, request, &answer)?;
            }
            if let Some(record) = &self.record
                && record.get::<T>(model, key)?.is_none()
            {
                record.put(model, key, request, &answer)?;
            }
        }
        drop(claim);
        Ok((answer, cached))
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
            Backend::Local(_) | Backend::Replay(_) => 1,
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
    /// The beginning that a prompt shares with the one before it is not computed again, so put
    /// what many prompts share first and score them one after the other.
    ///
    /// Errors: [`Error::LlmOutput`] when prompt and options do not fit the model's context;
    /// [`Error::Usage`] for an endpoint, which does not know token probabilities, and for no or
    /// empty options.
    pub fn score_options(&self, prompt: &Prompt, options: &[String]) -> Result<Vec<OptionScore>> {
        self.scores(prompt, options, |model| model.score_options(prompt, options))
    }

    /// [`Llm::score_options`] for many prompts, in their order; each fails on its own. An error of
    /// the whole is that of starting threads.
    ///
    /// A local model scores one prompt per core at a time, which is faster than one prompt over all
    /// cores. Of several prompts with the same beginning each core computes it once.
    pub fn score_many(
        &self,
        asked: &[(Prompt, Vec<String>)],
    ) -> Result<Vec<Result<Vec<OptionScore>>>> {
        let Backend::Local(model) = &self.backend else {
            let one =
                |(prompt, options): &(Prompt, Vec<String>)| self.score_options(prompt, options);
            return Ok(asked.iter().map(one).collect());
        };
        let threads = rayon::current_num_threads().min(asked.len());
        let score = |worker: usize| {
            let mut session = model.fresh_session();
            let own = asked.iter().skip(worker).step_by(threads);
            let scored = own.map(|(prompt, options)| {
                check_interrupt()?;
                self.scores(prompt, options, |model| {
                    model.score_options_in(&mut session, prompt, options)
                })
            });
            Ok(scored.collect::<Vec<_>>())
        };
        let by_worker = Workers::new(threads)?.map(threads, score)?;
        let mut by_worker: Vec<_> = by_worker.into_iter().map(Vec::into_iter).collect();
        let next = |at: usize| {
            let lost = || Err(Error::Bug("a prompt was left out".into()));
            by_worker[at % threads].next().unwrap_or_else(lost)
        };
        Ok((0..asked.len()).map(next).collect())
    }

    /// What is known about the options, or else what `score` finds with the local model.
    fn scores(
        &self,
        prompt: &Prompt,
        options: &[String],
        score: impl FnOnce(&Local) -> Result<Vec<OptionScore>>,
    ) -> Result<Vec<OptionScore>> {
        if options.is_empty() || options.iter().any(String::is_empty) {
            return Err(Error::usage("score_options needs options, none of them empty"));
        }
        if let Backend::Endpoint(_) = &self.backend {
            return Err(Error::usage(format!(
                "{}: endpoints do not tell the probability of given options; use generate, or a \
                 gguf: or hf: model",
                self.name
            )));
        }
        let request = prompt.canonical(options);
        let (scores, _) = self.answer(
            &request,
            |_| true,
            || match &self.backend {
                Backend::Local(model) => score(model),
                Backend::Endpoint(_) | Backend::Replay(_) => {
                    Err(self.unknown("it is not in the recording"))
                }
            },
        )?;
        Ok(scores)
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
            // Another process may be generating a long answer on a slow machine.
            Backend::Local(_) => Duration::from_secs(3_600),
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
