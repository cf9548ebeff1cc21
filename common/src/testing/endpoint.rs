//! A mock of an OpenAI-compatible server that counts its calls and misbehaves on request.
//!
//! Which call of which request meets which fault depends only on the seed, the request and how
//! often it was asked, not on the order in which threads arrive: a test sees the same faults on
//! every run.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::rng::Seed;

/// What can go wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 429, with a `Retry-After` of a few milliseconds.
    RetryAfter,
    /// 429 without advice.
    TooMany,
    /// 500, 502 or 503.
    Status(u16),
    /// The connection is reset instead of a reply.
    Reset,
    /// No reply until the client gives up.
    Stall,
    /// The connection ends in the middle of the body.
    HalfBody,
    /// A proxy's HTML page with status 200.
    Html,
    /// A well-formed reply with no choices.
    EmptyChoices,
    /// The text without a finish reason.
    NoFinish,
    /// A cut text with finish reason "length" far below the limit.
    FalseLength,
    /// The right body, declared as HTML.
    WrongType,
    /// The reply, and a moment later the reply again.
    LateDuplicate,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 14] = [
        Self::RetryAfter,
        Self::TooMany,
        Self::Status(500),
        Self::Status(502),
        Self::Status(503),
        Self::Reset,
        Self::Stall,
        Self::HalfBody,
        Self::Html,
        Self::EmptyChoices,
        Self::NoFinish,
        Self::FalseLength,
        Self::WrongType,
        Self::LateDuplicate,
    ];
}

/// A call as the server received it.
#[derive(Debug, Clone)]
pub struct Call {
    /// Path of the address.
    pub path: String,
    /// Header names in lower case.
    pub headers: HashMap<String, String>,
    /// The JSON body; `Null` when it is none.
    pub body: Value,
    /// How often the same messages were asked before.
    pub earlier: usize,
}

impl Call {
    /// The text of the last message, or "".
    pub fn last_text(&self) -> &str {
        let messages = self.body.get("messages").and_then(Value::as_array);
        messages.and_then(|messages| messages.last()?.get("content")?.as_str()).unwrap_or_default()
    }
}

/// A reply as the server sends it.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Headers besides the length.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// A JSON reply.
    pub fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            headers: vec![("Content-Type".to_owned(), "application/json".to_owned())],
            body: body.to_string().into_bytes(),
        }
    }

    /// A finished chat answer.
    pub fn chat(text: &str) -> Self {
        Self::json(200, &chat(text, &json!("stop")))
    }

    /// The same reply with another header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

fn chat(text: &str, finish: &Value) -> Value {
    json!({
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": text },
            "finish_reason": finish,
        }],
        "usage": { "prompt_tokens": 10, "completion_tokens": text.len().div_ceil(4) },
    })
}

/// A server on a free local port, until it is dropped.
#[derive(Debug)]
pub struct MockEndpoint {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

type Handler = dyn Fn(&Call) -> Reply + Send + Sync;

struct Shared {
    handler: Box<Handler>,
    faults: Option<(f64, Seed)>,
    stop: AtomicBool,
    total: AtomicUsize,
    /// Messages → calls.
    calls: Mutex<HashMap<String, usize>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("total", &self.total).finish_non_exhaustive()
    }
}

impl MockEndpoint {
    /// A server that replies as `handler` says.
    ///
    /// # Panics
    /// When no local port can be opened.
    pub fn start(handler: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(Box::new(handler), None)
    }

    /// A chat server that answers with the text of `answer`, but meets a share of `faults` of the
    /// calls with one of [`Fault::ALL`], drawn evenly.
    ///
    /// # Panics
    /// When no local port can be opened.
    pub fn faulty(
        faults: f64,
        seed: u64,
        answer: impl Fn(&Call) -> String + Send + Sync + 'static,
    ) -> Self {
        Self::with(
            Box::new(move |call| Reply::chat(&answer(call))),
            Some((faults, Seed::new(seed))),
        )
    }

    fn with(handler: Box<Handler>, faults: Option<(f64, Seed)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free local port");
        let address = listener.local_addr().expect("the port just opened");
        let shared = Arc::new(Shared {
            handler,
            faults,
            stop: AtomicBool::new(false),
            total: AtomicUsize::new(0),
            calls: Mutex::default(),
        });
        let state = Arc::clone(&shared);
        let listener = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if state.stop.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let state = Arc::clone(&state);
                std::thread::spawn(move || {
                    // A client that hangs up is no fault of the test.
                    let _ = state.serve(&stream);
                });
            }
        });
        Self { address, shared, listener: Some(listener) }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// An LLM spec of this server.
    pub fn spec(&self) -> String {
        format!("openai:{}/v1#mock", self.url())
    }

    /// Calls so far.
    pub fn calls(&self) -> usize {
        self.shared.total.load(Ordering::SeqCst)
    }

    /// Calls so far per different list of messages (its JSON text).
    pub fn calls_per_request(&self) -> HashMap<String, usize> {
        self.shared.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for MockEndpoint {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the listener up.
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Shared {
    fn serve(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::with_capacity(1, stream);
        let (path, headers, length) = head(&mut reader)?;
        // The last byte stays unread for now: closing a socket with unread input resets it.
        let mut body = vec![0; length.saturating_sub(1)];
        reader.read_exact(&mut body)?;
        let text = String::from_utf8_lossy(&body).into_owned();
        let body: Value = serde_json::from_str(&format!("{text}}}")).unwrap_or(Value::Null);

        let key = body.get("messages").map(Value::to_string).unwrap_or_default();
        let earlier = {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let count = calls.entry(key.clone()).or_default();
            *count += 1;
            *count - 1
        };
        self.total.fetch_add(1, Ordering::SeqCst);
        let fault = self.faults.and_then(|(share, seed)| {
            let mut stream = seed.stream(&format!("{earlier}/{key}"));
            stream.chance(share).then(|| Fault::ALL[stream.below(Fault::ALL.len())])
        });
        if fault == Some(Fault::Reset) {
            return Ok(());
        }
        if length > 0 {
            reader.read_exact(&mut [0])?;
        }
        if fault == Some(Fault::Stall) {
            self.wait_for_hang_up(&mut reader);
            return Ok(());
        }
        let reply = (self.handler)(&Call { path, headers, body, earlier });
        let reply = match fault {
            Some(fault) => spoil(reply, fault),
            None => reply,
        };
        let bytes = head_of(&reply);
        let mut out = stream;
        if fault == Some(Fault::HalfBody) {
            out.write_all(&bytes)?;
            return out.write_all(&reply.body[..reply.body.len() / 2]);
        }
        let whole = [bytes, reply.body].concat();
        out.write_all(&whole)?;
        if fault == Some(Fault::LateDuplicate) {
            std::thread::sleep(Duration::from_millis(5));
            out.write_all(&whole)?;
        }
        self.wait_for_hang_up(&mut reader);
        Ok(())
    }

    /// Keeps the connection open, as a server with keep-alive does.
    fn wait_for_hang_up(&self, reader: &mut BufReader<&TcpStream>) {
        let end = Instant::now() + Duration::from_secs(20);
        let _ = reader.get_ref().set_read_timeout(Some(Duration::from_millis(50)));
        while Instant::now() < end && !self.stop.load(Ordering::SeqCst) {
            match reader.read(&mut [0; 64]) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

type Head = (String, HashMap<String, String>, usize);

fn head(reader: &mut impl BufRead) -> std::io::Result<Head> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    let length = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    Ok((path, headers, length))
}

fn head_of(reply: &Reply) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} Mock\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", reply.body.len()));
    head.into_bytes()
}

fn spoil(reply: Reply, fault: Fault) -> Reply {
    let error = |status: u16| {
        Reply::json(status, &json!({ "error": { "message": "overloaded", "code": status } }))
    };
    let text = || {
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        body["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
    };
    match fault {
        Fault::RetryAfter => error(429).header("Retry-After", "0.01"),
        Fault::TooMany => error(429),
        Fault::Status(status) => error(status),
        Fault::Html => Reply {
            status: 200,
            headers: vec![("Content-Type".to_owned(), "text/html".to_owned())],
            body: b"<html><body>Bad gateway</body></html>".to_vec(),
        },
        Fault::EmptyChoices => Reply::json(200, &json!({ "choices": [] })),
        Fault::NoFinish => Reply::json(200, &chat(&text(), &json!(""))),
        Fault::FalseLength => {
            let text = text();
            let cut: String = text.chars().take(text.chars().count() / 2).collect();
            Reply::json(200, &chat(&cut, &json!("length")))
        }
        Fault::WrongType => Reply {
            headers: vec![("Content-Type".to_owned(), "text/html; charset=utf-8".to_owned())],
            ..reply
        },
        Fault::Reset | Fault::Stall | Fault::HalfBody | Fault::LateDuplicate => reply,
    }
}
