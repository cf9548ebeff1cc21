//! Pictures from endpoints that speak OpenAI's images dialect (OpenAI, LocalAI, stable-diffusion.cpp
//! and proxies in front of others).

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use url::Url;

use super::{EndpointOptions, Failure, http};
use crate::llm::LlmSpec;
use crate::{Error, Result};

/// A picture generator behind `openai:BASE_URL#MODEL`.
#[derive(Debug)]
pub struct ImageEndpoint {
    agent: ureq::Agent,
    url: Url,
    model: String,
    options: EndpointOptions,
}

impl ImageEndpoint {
    /// From a spec in the form of `--llm`.
    ///
    /// # Errors
    /// [`Error::Usage`] when it is no endpoint.
    pub fn open(spec: &LlmSpec, options: &EndpointOptions) -> Result<Self> {
        let LlmSpec::Endpoint { base, model } = spec else {
            return Err(Error::usage(format!(
                "{spec} draws no pictures; write openai:BASE_URL#MODEL"
            )));
        };
        let text = base.as_str().trim_end_matches('/').trim_end_matches("/images/generations");
        let url = Url::parse(&format!("{text}/images/generations"))
            .map_err(|error| Error::usage(format!("image endpoint {base}: {error}")))?;
        let (agent, model) = (http::agent(base), model.clone());
        Ok(Self { agent, url, model, options: options.clone() })
    }

    /// `count` pictures of `size` × `size` pixels as the files that the endpoint sent (PNG, JPEG or
    /// WebP). What may pass is tried again within the options' budget.
    ///
    /// # Errors
    /// [`Error::Temporary`] when there was no answer in time, [`Error::Usage`] when none will come,
    /// [`Error::LlmOutput`] when this prompt is refused or the answer holds no pictures.
    pub fn draw(&self, prompt: &str, count: usize, size: usize) -> Result<Vec<Vec<u8>>> {
        let body = json!({ "model": self.model, "prompt": prompt, "n": count,
                           "size": format!("{size}x{size}"), "response_format": "b64_json" });
        let body = body.to_string();
        let deadline = Instant::now() + self.options.budget;
        let place = || format!("{} (model {})", self.url, self.model);
        let mut wait = self.options.backoff;
        for attempt in 1.. {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = self.options.attempt_timeout.min(left).max(Duration::from_millis(1));
            let found = http::post(&self.agent, &self.url, body.as_bytes(), &self.options, timeout)
                .and_then(|reply| match reply.is_success() {
                    true => pictures(&reply.text, count),
                    false => Err(reply.failure(None)),
                });
            let (reason, after) = match found {
                Ok(pictures) => return Ok(pictures),
                Err(Failure::Refused(reason)) => {
                    return Err(Error::LlmOutput(format!("{}: {reason}", place())));
                }
                Err(Failure::Fatal(reason)) => {
                    return Err(Error::usage(format!("{}: {reason}", place())));
                }
                Err(Failure::Garbled(reason)) if attempt >= self.options.attempts.min(3) => {
                    return Err(Error::LlmOutput(format!("{}: {reason}", place())));
                }
                Err(Failure::Garbled(reason)) => (reason, None),
                Err(Failure::Passing { reason, after }) => (reason, after),
            };
            let pause = after.unwrap_or(wait);
            wait = (wait * 2).min(self.options.max_backoff);
            let left = deadline.saturating_duration_since(Instant::now());
            if attempt >= self.options.attempts || pause >= left {
                return Err(Error::Temporary(format!(
                    "{} gave no picture in {attempt} attempts: {reason}",
                    place()
                )));
            }
            std::thread::sleep(pause);
        }
        Err(Error::Bug("an endless loop ended".into()))
    }
}

/// The pictures of a reply.
fn pictures(text: &str, count: usize) -> Result<Vec<Vec<u8>>, Failure> {
    let garbled = |problem: &str| Failure::Garbled(format!("a reply {problem}"));
    let reply: Value = serde_json::from_str(text).map_err(|_| garbled("that is not JSON"))?;
    let data = reply["data"].as_array().ok_or_else(|| garbled("without data"))?;
    let decode = |entry: &Value| {
        let text = entry["b64_json"].as_str().ok_or_else(|| garbled("without b64_json"))?;
        STANDARD.decode(text).map_err(|_| garbled("with broken base64"))
    };
    let pictures = data.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
    match pictures.len() == count {
        true => Ok(pictures),
        false => Err(garbled(&format!("of {} pictures, asked for {count}", pictures.len()))),
    }
}
