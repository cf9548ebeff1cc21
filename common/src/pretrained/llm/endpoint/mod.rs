//! A client for OpenAI-compatible chat endpoints (OpenAI, vLLM, llama.cpp, Ollama and proxies in
//! front of them).
//!
//! A failure is one of three kinds. What may pass (connection, 408, 425, 429, 5xx) is tried again
//! with exponential back-off and jitter, or after the server's `Retry-After`, until
//! [`EndpointOptions::budget`] or [`EndpointOptions::attempts`] is used up; then the answer is
//! [`Error::Temporary`]. What no retry can mend (401, 403, 404, an exhausted quota, a bad
//! certificate) is [`Error::Usage`] at once. What concerns one request (400, 413, 422, an answer
//! that stays unusable) is [`Error::LlmOutput`]. A failure is never cached.

mod http;
mod images;
mod wire;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use url::Url;

use super::request::{Answer, Finish, Request};
use crate::rng::{Seed, Stream};
use crate::{Error, Result};
use http::Failure;
pub use images::ImageEndpoint;
use wire::Shape;

/// How often an answer without a proper end is asked for again before it is handed out as it is.
const UNFINISHED_ATTEMPTS: usize = 3;
/// How often a reply without any usable content is asked for again before the request fails.
const GARBLED_ATTEMPTS: usize = 6;

/// A secret that shows neither in `Debug` output nor in messages.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key that the program holds already. The binaries only use [`ApiKey::from_env`].
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// `SEPTET_API_KEY`, or else `OPENAI_API_KEY`; `None` when both are unset or blank.
    pub fn from_env() -> Option<Self> {
        ["SEPTET_API_KEY", "OPENAI_API_KEY"]
            .iter()
            .filter_map(|name| std::env::var(name).ok())
            .map(|key| key.trim().to_owned())
            .find(|key| !key.is_empty())
            .map(Self)
    }

    /// Takes the key out of text that a server sent.
    fn scrub(&self, text: &str) -> String {
        // A very short "key" (local servers take any) would mangle ordinary words.
        if self.0.len() < 8 { text.to_owned() } else { text.replace(&self.0, "[key]") }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey([hidden])")
    }
}

/// How patient the client is.
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// Sent as `Authorization: Bearer`; never to another host that the endpoint redirects to.
    pub key: Option<ApiKey>,
    /// Limit of one attempt, from connecting to the last byte.
    pub attempt_timeout: Duration,
    /// Limit of one request over all its attempts and waits.
    pub budget: Duration,
    /// Attempts per request.
    pub attempts: usize,
    /// The first wait; it doubles with every further one.
    pub backoff: Duration,
    /// The longest wait, unless the server asks for a longer one.
    pub max_backoff: Duration,
    /// A longer reply is refused.
    pub max_response_bytes: u64,
}

impl Default for EndpointOptions {
    /// The key from the environment, 120 s an attempt, 300 s and 10 attempts a request, waits of
    /// 0.5 s to 30 s, replies up to 16 MiB.
    fn default() -> Self {
        Self {
            key: ApiKey::from_env(),
            attempt_timeout: Duration::from_secs(120),
            budget: Duration::from_secs(300),
            attempts: 10,
            backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(30),
            max_response_bytes: 16 << 20,
        }
    }
}

pub(super) struct Endpoint {
    agent: ureq::Agent,
    /// Candidates for the chat address; which one answers is learnt from the first replies.
    urls: Vec<Url>,
    url: AtomicUsize,
    model: String,
    options: EndpointOptions,
    /// The dialect that the endpoint has accepted so far.
    shape: Mutex<Shape>,
    jitter: Mutex<Stream>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("urls", &self.urls)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    pub(super) fn new(base: &Url, model: &str, options: &EndpointOptions) -> Result<Self> {
        let urls = wire::chat_urls(base)?;
        if base.scheme() == "http" && options.key.is_some() && !http::is_local(base) {
            tracing::warn!("the API key goes to {base} unencrypted; use https");
        }
        // Waits of several processes should differ; nothing else depends on this number.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seed = u64::from(now.subsec_nanos()) ^ (u64::from(std::process::id()) << 32);
        Ok(Self {
            agent: http::agent(base),
            urls,
            url: AtomicUsize::new(0),
            model: model.to_owned(),
            options: options.clone(),
            shape: Mutex::default(),
            jitter: Mutex::new(Seed::new(seed).stream("llm/backoff")),
        })
    }

    pub(super) fn budget(&self) -> Duration {
        self.options.budget
    }

    /// Asks until there is an answer. `cancel` ends waiting early with [`Error::Temporary`].
    pub(super) fn ask(&self, request: &Request, cancel: &AtomicBool) -> Result<Answer> {
        let deadline = Instant::now() + self.options.budget;
        let (mut attempts, mut unfinished, mut garbled) = (0, 0, 0);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (reason, after) = match self.attempt(request, left) {
                Ok(answer) => {
                    if is_final(&answer, request) {
                        return Ok(answer);
                    }
                    unfinished += 1;
                    if unfinished >= UNFINISHED_ATTEMPTS {
                        return Ok(answer);
                    }
                    (format!("finish_reason {:?}", answer.finish), None)
                }
                Err(Failure::Passing { reason, after }) => (reason, after),
                Err(Failure::Garbled(reason)) => {
                    garbled += 1;
                    if garbled >= GARBLED_ATTEMPTS {
                        return Err(Error::LlmOutput(format!("{}: {reason}", self.place())));
                    }
                    (reason, None)
                }
                Err(Failure::Refused(reason)) => {
                    return Err(Error::LlmOutput(format!("{}: {reason}", self.place())));
                }
                Err(Failure::Fatal(reason)) => {
                    return Err(Error::usage(format!("{}: {reason}", self.place())));
                }
            };
            attempts += 1;
            tracing::debug!("attempt {attempts} at {}: {reason}", self.place());
            let wait = after.unwrap_or_else(|| self.backoff(attempts));
            let left = deadline.saturating_duration_since(Instant::now());
            if attempts >= self.options.attempts || wait >= left {
                return Err(Error::Temporary(format!(
                    "{} gave no answer in {attempts} attempts: {reason}",
                    self.place()
                )));
            }
            if !sleep(wait, cancel) {
                return Err(Error::Temporary(format!("{}: given up, {reason}", self.place())));
            }
        }
    }

    fn place(&self) -> String {
        format!("{} (model {})", self.urls[self.url.load(Ordering::Relaxed)], self.model)
    }

    /// Half of the doubled wait, and up to as much again by chance.
    fn backoff(&self, attempts: usize) -> Duration {
        let doublings = u32::try_from(attempts - 1).unwrap_or(31).min(31);
        let full =
            self.options.backoff.saturating_mul(1_u32 << doublings).min(self.options.max_backoff);
        let chance = self.jitter.lock().unwrap_or_else(PoisonError::into_inner).uniform();
        full.mul_f64(0.5 + 0.5 * chance)
    }

    /// One attempt, apart from steps towards a dialect that the endpoint understands.
    fn attempt(&self, request: &Request, left: Duration) -> Result<Answer, Failure> {
        let start = Instant::now();
        let mut shape = *self.shape.lock().unwrap_or_else(PoisonError::into_inner);
        let mut url = self.url.load(Ordering::Relaxed);
        let mut first_refusal = None;
        loop {
            let timeout = self.options.attempt_timeout.min(left).saturating_sub(start.elapsed());
            if timeout.is_zero() {
                return Err(Failure::Passing { reason: "timeout".to_owned(), after: None });
            }
            let body = wire::body(request, &self.model, shape);
            let reply = http::post(&self.agent, &self.urls[url], &body, &self.options, timeout)?;
            if matches!(reply.status, 404 | 405) && url + 1 < self.urls.len() {
                first_refusal.get_or_insert_with(|| reply.explain());
                url += 1;
                continue;
            }
            // llama-cpp-python calls a format that it does not know an error of its own
            let format = reply.status == 500 && reply.text.contains("response_format");
            if (format || matches!(reply.status, 400 | 422 | 501))
                && let Some(next) = shape.after_refusal(request, &reply.text)
            {
                tracing::debug!("the endpoint refused {shape:?}: {}", reply.explain());
                first_refusal.get_or_insert_with(|| reply.explain());
                shape = next;
                continue;
            }
            if reply.is_success() {
                let answer = wire::answer(&reply.text, &request.stop)?;
                *self.shape.lock().unwrap_or_else(PoisonError::into_inner) = shape;
                self.url.store(url, Ordering::Relaxed);
                return Ok(answer);
            }
            return Err(reply.failure(first_refusal));
        }
    }
}

/// Whether asking again can't change the end of `answer`.
fn is_final(answer: &Answer, request: &Request) -> bool {
    match answer.finish {
        Finish::Stop | Finish::ContentFilter => true,
        // The limit was really reached. A cut below it comes from a fault on the way.
        Finish::Length => {
            answer.usage.completion_tokens.is_some_and(|used| used >= request.max_tokens as u64)
        }
        Finish::Other(_) => false,
    }
}

/// False when `cancel` was set before the time was over.
fn sleep(time: Duration, cancel: &AtomicBool) -> bool {
    let end = Instant::now() + time;
    loop {
        if cancel.load(Ordering::Relaxed) {
            return false;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(Duration::from_millis(20)));
    }
}
