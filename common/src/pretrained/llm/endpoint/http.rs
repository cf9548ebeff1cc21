//! One HTTP exchange: redirects, limits, and what a status means.

use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use ureq::http::{HeaderValue, Response};
use url::{Host, Url};

use super::{ApiKey, EndpointOptions};

const MAX_REDIRECTS: usize = 5;
const EXPLANATION_CHARS: usize = 300;

/// Why an attempt gave no answer, by what can be done about it.
#[derive(Debug)]
pub(super) enum Failure {
    /// May pass: try again, `after` the server's own wish if it has one.
    Passing { reason: String, after: Option<Duration> },
    /// The server answered, but not with an answer.
    Garbled(String),
    /// This request is not accepted; others may be.
    Refused(String),
    /// No request will be accepted.
    Fatal(String),
}

/// A whole reply; every text in it is free of the API key.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) text: String,
    retry_after: Option<Duration>,
    key_sent: bool,
    key_dropped: bool,
}

pub(super) fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// Connections are not kept: a late second reply on a kept one would be taken for the answer to
/// the next request.
pub(super) fn agent(base: &Url) -> ureq::Agent {
    let mut config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(0)
        .accept("application/json")
        .accept_encoding("identity")
        .user_agent(concat!("septet/", env!("CARGO_PKG_VERSION")));
    if is_local(base) {
        config = config.proxy(None);
    }
    config.build().new_agent()
}

/// Posts `body` and reads the reply within `timeout`, following redirects as a post.
pub(super) fn post(
    agent: &ureq::Agent,
    url: &Url,
    body: &[u8],
    options: &EndpointOptions,
    timeout: Duration,
) -> Result<Reply, Failure> {
    let deadline = Instant::now() + timeout;
    let mut target = url.clone();
    for _ in 0..=MAX_REDIRECTS {
        let key = options.key.as_ref().filter(|_| target.origin() == url.origin());
        let left = deadline.saturating_duration_since(Instant::now());
        let mut request = agent
            .post(target.as_str())
            .config()
            .timeout_global(Some(left.max(Duration::from_millis(1))))
            .build()
            .header(CONTENT_TYPE, "application/json");
        if let Some(ApiKey(key)) = key {
            let mut value = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| {
                Failure::Fatal(
                    "the API key in the environment holds characters that no HTTP header may \
                     hold; check it for line breaks"
                        .to_owned(),
                )
            })?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let mut response = request.send(body).map_err(transport)?;
        let status = response.status().as_u16();
        if let (301 | 302 | 307 | 308, Some(location)) = (status, location(&response, &target)) {
            target = location?;
            continue;
        }
        let bytes = response
            .body_mut()
            .with_config()
            .limit(options.max_response_bytes)
            .read_to_vec()
            .map_err(transport)?;
        let text = String::from_utf8_lossy(&bytes);
        let text = match &options.key {
            Some(key) => key.scrub(&text),
            None => text.into_owned(),
        };
        return Ok(Reply {
            status,
            text,
            retry_after: retry_after(response.headers(), SystemTime::now()),
            key_sent: key.is_some(),
            key_dropped: options.key.is_some() && key.is_none(),
        });
    }
    Err(Failure::Fatal(format!("more than {MAX_REDIRECTS} redirects; check the base URL")))
}

fn location<B>(response: &Response<B>, from: &Url) -> Option<Result<Url, Failure>> {
    let target = response.headers().get(LOCATION)?.to_str().ok()?;
    let url = from.join(target).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    Some(url.ok_or_else(|| Failure::Fatal("a redirect to an invalid address".to_owned())))
}

fn transport(error: ureq::Error) -> Failure {
    match error {
        ureq::Error::BadUri(_)
        | ureq::Error::Http(_)
        | ureq::Error::InvalidProxyUrl
        | ureq::Error::RequireHttpsOnly(_)
        | ureq::Error::TlsRequired => Failure::Fatal(format!("{error}; check the base URL")),
        ureq::Error::Rustls(error) => {
            Failure::Fatal(format!("the secure connection failed ({error}); check the base URL"))
        }
        ureq::Error::BodyExceedsLimit(limit) => {
            Failure::Garbled(format!("a reply of more than {limit} bytes"))
        }
        error => Failure::Passing { reason: error.to_string(), after: None },
    }
}

/// `Retry-After` in seconds or as an HTTP date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds.max(0.0)).ok();
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

impl Reply {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The status and the server's own words, shortened.
    pub(super) fn explain(&self) -> String {
        let message = serde_json::from_str::<Value>(&self.text).ok().and_then(|value| {
            let error = value.get("error").unwrap_or(&value);
            let message = error.get("message").or_else(|| value.get("detail")).unwrap_or(error);
            message.as_str().map(str::to_owned)
        });
        let message = message.unwrap_or_else(|| self.text.clone());
        let short: String = message
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .chars()
            .take(EXPLANATION_CHARS)
            .collect();
        format!("HTTP {} {short:?}", self.status)
    }

    /// What a status outside 2xx means. `first` is the refusal before other dialects were tried.
    pub(super) fn failure(&self, first: Option<String>) -> Failure {
        let reason = first.unwrap_or_else(|| self.explain());
        match self.status {
            429 if self.text.contains("insufficient_quota") => {
                Failure::Fatal(format!("the account's quota is used up ({reason})"))
            }
            408 | 409 | 425 | 429 | 500 | 502..=504 | 506..=599 => {
                Failure::Passing { reason, after: self.retry_after }
            }
            401 | 403 if self.key_dropped => Failure::Fatal(format!(
                "{reason}; the API key was not sent because the endpoint redirects to another \
                 host, so write that host into the base URL"
            )),
            401 | 403 if self.key_sent => {
                Failure::Fatal(format!("{reason}; the API key in the environment is not accepted"))
            }
            401 | 403 => Failure::Fatal(format!("{reason}; set the API key in SEPTET_API_KEY")),
            404 | 405 => {
                Failure::Fatal(format!("{reason}; check the base URL and the model name after '#'"))
            }
            300..=399 => Failure::Fatal(format!("{reason}; write the final address as base URL")),
            _ => Failure::Refused(reason),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_reads_seconds_and_dates() {
        let now = httpdate::parse_http_date("Sun, 22 Nov 2026 10:00:00 GMT").unwrap();
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(value).unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read("0.25"), Some(Duration::from_millis(250)));
        assert_eq!(read("-3"), Some(Duration::ZERO));
        assert_eq!(read("Sun, 22 Nov 2026 10:01:30 GMT"), Some(Duration::from_secs(90)));
        assert_eq!(read("Sun, 22 Nov 2020 10:01:30 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
        assert_eq!(read("NaN"), Some(Duration::ZERO));
        assert_eq!(read("1e300"), None);
    }
}
