//! Requests and replies as the servers' dialects write them.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};
use url::Url;

use super::http::Failure;
use crate::llm::request::{Answer, Content, Finish, Message, Request, Usage};
use crate::{Error, Result};

/// Addresses that chat may live at, the likeliest first.
pub(super) fn chat_urls(base: &Url) -> Result<Vec<Url>> {
    let path = base.path().trim_end_matches('/');
    let last = path.rsplit('/').next().unwrap_or_default();
    let is_version = last.strip_prefix('v').is_some_and(|rest| rest.parse::<u32>().is_ok());
    let paths = if path.ends_with("/chat/completions") {
        vec![path.to_owned()]
    } else if is_version {
        vec![format!("{path}/chat/completions")]
    } else {
        vec![format!("{path}/v1/chat/completions"), format!("{path}/chat/completions")]
    };
    paths
        .iter()
        .map(|path| {
            let mut url = base.clone();
            url.set_path(path);
            url.set_query(None);
            url.set_fragment(None);
            (url.host_str().is_some()).then_some(url)
        })
        .collect::<Option<_>>()
        .ok_or_else(|| Error::usage(format!("LLM endpoint: the base URL {base} has no host")))
}

/// How a schema is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SchemaForm {
    /// `response_format: json_schema`: OpenAI, newer vLLM, llama.cpp, Ollama.
    JsonSchema,
    /// `guided_json`: older vLLM.
    GuidedJson,
    /// `response_format: json_object` with the schema in it: llama-cpp-python, older llama.cpp.
    JsonObjectOfSchema,
    /// `response_format: json_object`, the schema in the prompt.
    JsonObject,
    /// In the prompt only.
    Prompt,
}

/// A dialect. A refused request is repeated in the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    schema: SchemaForm,
    /// `max_completion_tokens` in place of `max_tokens` (OpenAI's reasoning models).
    completion_limit: bool,
    /// Leave out temperature, top_p and seed (models that accept no sampling parameters).
    plain_sampling: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { schema: SchemaForm::JsonSchema, completion_limit: false, plain_sampling: false }
    }
}

impl Shape {
    /// What to try after the server refused this shape with `reply`; `None` when the refusal is
    /// about something else or nothing is left to try.
    pub(super) fn after_refusal(self, request: &Request, reply: &str) -> Option<Self> {
        if !self.completion_limit && reply.contains("max_completion_tokens") {
            return Some(Self { completion_limit: true, ..self });
        }
        let unsupported = reply.contains("nsupported") || reply.contains("not support");
        let names_sampling =
            ["temperature", "top_p", "'seed'"].iter().any(|name| reply.contains(name));
        if !self.plain_sampling && unsupported && names_sampling {
            tracing::warn!("the endpoint takes no temperature, top_p and seed: sent without");
            return Some(Self { plain_sampling: true, ..self });
        }
        request.schema.as_ref()?;
        let schema = match self.schema {
            SchemaForm::JsonSchema if reply.contains("json_object") => {
                SchemaForm::JsonObjectOfSchema
            }
            SchemaForm::JsonSchema => SchemaForm::GuidedJson,
            SchemaForm::GuidedJson | SchemaForm::JsonObjectOfSchema => SchemaForm::JsonObject,
            SchemaForm::JsonObject => SchemaForm::Prompt,
            SchemaForm::Prompt => return None,
        };
        Some(Self { schema, ..self })
    }
}

/// The JSON body of a request.
pub(super) fn body(request: &Request, model: &str, shape: Shape) -> Vec<u8> {
    let mut messages: Vec<Value> = request.messages.iter().map(message).collect();
    let mut body = Map::new();
    let limit = if shape.completion_limit { "max_completion_tokens" } else { "max_tokens" };
    body.insert(limit.to_owned(), json!(request.max_tokens));
    if !shape.plain_sampling {
        body.insert("temperature".to_owned(), json!(request.temperature));
        if request.temperature > 0.0 {
            body.insert("top_p".to_owned(), json!(request.top_p));
            body.insert("seed".to_owned(), json!(request.seed));
        }
    }
    if !request.stop.is_empty() {
        body.insert("stop".to_owned(), json!(request.stop));
    }
    if let Some(schema) = &request.schema {
        match shape.schema {
            SchemaForm::JsonSchema => {
                let format = json!({
                    "type": "json_schema",
                    "json_schema": { "name": "answer", "strict": true, "schema": schema },
                });
                body.insert("response_format".to_owned(), format);
            }
            SchemaForm::GuidedJson => {
                body.insert("guided_json".to_owned(), schema.clone());
            }
            form => {
                let text = format!(
                    "Answer with JSON only, without a code fence, of this schema: {schema}"
                );
                messages.insert(0, json!({ "role": "system", "content": text }));
                let format = match form {
                    SchemaForm::JsonObject => Some(json!({ "type": "json_object" })),
                    SchemaForm::JsonObjectOfSchema => {
                        Some(json!({ "type": "json_object", "schema": schema }))
                    }
                    _ => None,
                };
                body.extend(format.map(|format| ("response_format".to_owned(), format)));
            }
        }
    }
    let mut whole = json!({ "model": model, "messages": messages, "stream": false });
    if let Some(whole) = whole.as_object_mut() {
        whole.extend(body);
    }
    whole.to_string().into_bytes()
}

fn message(message: &Message) -> Value {
    let content = match message.content.as_slice() {
        // Many servers take nothing but a string here.
        [Content::Text(text)] => json!(text),
        parts => parts.iter().map(part).collect(),
    };
    json!({ "role": message.role.as_str(), "content": content })
}

fn part(part: &Content) -> Value {
    match part {
        Content::Text(text) => json!({ "type": "text", "text": text }),
        Content::Image { media_type, bytes } => {
            let url = format!("data:{media_type};base64,{}", BASE64_STANDARD.encode(bytes));
            json!({ "type": "image_url", "image_url": { "url": url } })
        }
    }
}

/// Reads a 2xx reply, the finish reason before the text.
pub(super) fn answer(reply: &str, stop: &[String]) -> Result<Answer, Failure> {
    let value: Value = serde_json::from_str(reply).map_err(|error| {
        let what = if reply.trim_start().starts_with('<') { "an HTML page" } else { "no JSON" };
        Failure::Garbled(format!("the reply is {what} ({error})"))
    })?;
    if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
        return Err(reported(error));
    }
    let choice = value
        .get("choices")
        .and_then(|choices| choices.get(0))
        .ok_or_else(|| Failure::Garbled("the reply has no choices".to_owned()))?;
    let finish = finish(choice.get("finish_reason").and_then(Value::as_str).unwrap_or_default());
    let usage = usage(value.get("usage"));
    let message = choice.get("message").unwrap_or(&Value::Null);
    let content = message.get("content").or_else(|| choice.get("text")).and_then(text);
    let mut reasoning = ["reasoning_content", "reasoning"]
        .iter()
        .filter_map(|name| message.get(name).and_then(text))
        .find(|text| !text.is_empty());

    let mut text = match content {
        Some(text) => text,
        // Cut off while it was still reasoning, or withheld: there is no text to expect.
        None if finish != Finish::Stop => String::new(),
        None => return Err(Failure::Garbled("the reply's message has no content".to_owned())),
    };
    if let Some((thought, rest)) =
        text.trim_start().strip_prefix("<think>").and_then(|rest| rest.split_once("</think>"))
    {
        reasoning.get_or_insert_with(|| thought.trim().to_owned());
        text = rest.trim_start().to_owned();
    }
    if let Some(end) = stop.iter().filter_map(|stop| text.find(stop.as_str())).min() {
        text.truncate(end);
    }
    Ok(Answer { text, reasoning, finish, usage, cached: false })
}

/// Some proxies report a failure with status 200.
fn reported(error: &Value) -> Failure {
    let message = error.get("message").and_then(Value::as_str).unwrap_or("without a message");
    let reason = format!("the endpoint reports an error: {message:.300}");
    let code = error.get("code");
    match code.and_then(Value::as_u64).or_else(|| code?.as_str()?.parse().ok()) {
        Some(401 | 403 | 404) => Failure::Fatal(reason),
        Some(400 | 413 | 422) => Failure::Refused(reason),
        _ => Failure::Garbled(reason),
    }
}

fn finish(reason: &str) -> Finish {
    match reason {
        "stop" | "eos" | "eos_token" | "end_turn" | "stop_sequence" => Finish::Stop,
        "length" | "max_tokens" | "model_length" => Finish::Length,
        "content_filter" | "safety" => Finish::ContentFilter,
        other => Finish::Other(other.to_owned()),
    }
}

/// A string, or the text parts of an array of parts.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => Some(
            parts
                .iter()
                .filter_map(|part| part.as_str().or_else(|| part.get("text")?.as_str()))
                .collect(),
        ),
        _ => None,
    }
}

fn usage(value: Option<&Value>) -> Usage {
    let count = |name| value.and_then(|usage| usage.get(name)).and_then(Value::as_u64);
    Usage { prompt_tokens: count("prompt_tokens"), completion_tokens: count("completion_tokens") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn urls(base: &str) -> Vec<String> {
        let base = Url::parse(base).unwrap();
        chat_urls(&base).unwrap().iter().map(|url| url.path().to_owned()).collect()
    }

    #[test]
    fn base_urls_with_and_without_version() {
        assert_eq!(urls("http://h:1"), ["/v1/chat/completions", "/chat/completions"]);
        assert_eq!(urls("http://h:1/v1/"), ["/v1/chat/completions"]);
        assert_eq!(urls("http://h/api/v3"), ["/api/v3/chat/completions"]);
        assert_eq!(urls("http://h/p"), ["/p/v1/chat/completions", "/p/chat/completions"]);
        assert_eq!(urls("http://h/x/chat/completions"), ["/x/chat/completions"]);
    }

    fn read(message: Value, finish: Value) -> Result<Answer, Failure> {
        let reply = json!({ "choices": [{ "message": message, "finish_reason": finish }] });
        answer(&reply.to_string(), &["###".to_owned()])
    }

    #[test]
    fn dialects_of_content_and_reasoning() {
        let plain = read(json!({ "content": "a ### b" }), json!("stop")).unwrap();
        assert_eq!((plain.text.as_str(), plain.complete()), ("a ", true));
        let parts = json!({ "content": [{ "type": "text", "text": "x" }, { "text": "y" }] });
        assert_eq!(read(parts, json!("stop")).unwrap().text, "xy");
        let split = json!({ "content": "out", "reasoning_content": "why" });
        assert_eq!(read(split, json!("stop")).unwrap().reasoning.as_deref(), Some("why"));
        let inline = json!({ "content": "<think>why</think>\n\nout" });
        let inline = read(inline, json!("stop")).unwrap();
        assert_eq!((inline.text.as_str(), inline.reasoning.as_deref()), ("out", Some("why")));
    }

    #[test]
    fn finish_reason_decides_before_the_text() {
        let cut = read(json!({ "content": null }), json!("length")).unwrap();
        assert_eq!((cut.finish.clone(), cut.complete()), (Finish::Length, false));
        assert_eq!(cut.into_text().unwrap_err().exit_code(), 5);
        let withheld = read(json!({ "content": "" }), json!("content_filter")).unwrap();
        assert_eq!(withheld.finish, Finish::ContentFilter);
        let nothing = read(json!({ "content": "x" }), Value::Null).unwrap();
        assert_eq!(nothing.finish, Finish::Other(String::new()));
        assert!(read(json!({ "content": null }), json!("stop")).is_err());
    }

    #[test]
    fn an_image_becomes_a_data_url() {
        let message =
            Message::user("what is it?").with_image("image/png", vec![0x89, b'P', b'N', b'G']);
        let body = body(&Request::new(vec![message]), "m", Shape::default());
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            body["messages"][0]["content"][1]["image_url"]["url"],
            "data:image/png;base64,iVBORw=="
        );
    }
}
