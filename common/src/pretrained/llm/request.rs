//! What an LLM is asked and what it answers.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions of the program.
    System,
    /// The question.
    User,
    /// An earlier answer (few-shot examples).
    Assistant,
}

impl Role {
    /// The name that chat templates and endpoints use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Text; never read for special tokens.
    Text(String),
    /// An encoded image, for endpoints whose model sees.
    Image {
        /// For example `image/png`.
        media_type: String,
        /// The file's bytes.
        bytes: Vec<u8>,
    },
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The parts, in order.
    pub content: Vec<Content>,
}

impl Message {
    /// A message of one text.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self { role, content: vec![Content::Text(text.into())] }
    }

    /// Instructions.
    pub fn system(text: impl Into<String>) -> Self {
        Self::new(Role::System, text)
    }

    /// A question.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Role::User, text)
    }

    /// An earlier answer.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::new(Role::Assistant, text)
    }

    /// The same message with an image (`media_type` such as `image/png`) behind its parts.
    pub fn with_image(mut self, media_type: impl Into<String>, bytes: Vec<u8>) -> Self {
        self.content.push(Content::Image { media_type: media_type.into(), bytes });
        self
    }

    /// The text parts, one after the other; an error when there is an image, which local models
    /// can't see.
    pub(super) fn text(&self) -> Result<String> {
        let mut text = String::new();
        for part in &self.content {
            match part {
                Content::Text(part) => text.push_str(part),
                Content::Image { .. } => {
                    return Err(Error::usage(
                        "a message holds an image, which local text models can't see; use an \
                         openai: endpoint with a vision model",
                    ));
                }
            }
        }
        Ok(text)
    }

    /// For cache keys and recordings: images by their SHA-256.
    fn canonical(&self) -> Value {
        let parts: Vec<Value> = self
            .content
            .iter()
            .map(|part| match part {
                Content::Text(text) => json!(text),
                Content::Image { media_type, bytes } => {
                    json!({ "image": hex(&Sha256::digest(bytes)), "media_type": media_type })
                }
            })
            .collect();
        json!({ "role": self.role, "content": parts })
    }
}

/// One generation: the conversation and how to continue it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The conversation; the model writes the next assistant turn.
    pub messages: Vec<Message>,
    /// Upper bound of generated tokens. An answer that reaches it has [`Finish::Length`].
    pub max_tokens: usize,
    /// 0 is greedy; otherwise logits are divided by it.
    pub temperature: f64,
    /// Nucleus: the smallest set of tokens whose probabilities sum to at least this, in `(0, 1]`.
    pub top_p: f64,
    /// Of the sampling stream; without effect at temperature 0.
    pub seed: u64,
    /// The answer must be JSON of this schema. Local models can't write anything else; endpoints
    /// are asked for it in the form they understand.
    pub schema: Option<Value>,
    /// The text ends before the first of these.
    pub stop: Vec<String>,
}

impl Request {
    /// A greedy request for at most 256 tokens.
    pub fn new(messages: Vec<Message>) -> Self {
        Self {
            messages,
            max_tokens: 256,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            schema: None,
            stop: Vec::new(),
        }
    }

    /// The same request with another token limit.
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = max_tokens;
        self
    }

    /// The same request with a JSON schema.
    pub fn schema(mut self, schema: Value) -> Self {
        self.schema = Some(schema);
        self
    }

    /// Usage error unless there is a message, a token limit and numbers in range.
    pub(super) fn check(&self) -> Result<()> {
        let problem = if self.messages.is_empty() {
            "no message".to_owned()
        } else if self.max_tokens == 0 {
            "max_tokens 0, expected at least 1".to_owned()
        } else if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            format!("temperature {}, expected a finite number of at least 0", self.temperature)
        } else if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            format!("top_p {}, expected a number in (0, 1]", self.top_p)
        } else if self.stop.iter().any(String::is_empty) {
            "an empty stop string".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::usage(format!("LLM request: found {problem}")))
    }

    /// Everything that decides the answer, apart from the model. The seed counts only when tokens
    /// are drawn.
    pub(super) fn canonical(&self) -> Value {
        let messages: Vec<Value> = self.messages.iter().map(Message::canonical).collect();
        let mut request = json!({ "messages": messages, "max_tokens": self.max_tokens });
        if self.temperature > 0.0 {
            request["temperature"] = json!(self.temperature);
            request["top_p"] = json!(self.top_p);
            request["seed"] = json!(self.seed);
        }
        if let Some(schema) = &self.schema {
            request["schema"] = schema.clone();
        }
        if !self.stop.is_empty() {
            request["stop"] = json!(self.stop);
        }
        request
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended its turn, a stop string was met, or the schema is complete.
    Stop,
    /// The token limit or the context ended it: the text is cut off.
    Length,
    /// The endpoint withheld the answer or a part of it.
    ContentFilter,
    /// Anything else that an endpoint reported; empty when it reported nothing.
    Other(String),
}

/// Token counts; `None` where an endpoint does not report them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// Generated tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
}

/// What the model wrote. Look at [`Answer::complete`] before using the text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The text, without stop string and without reasoning.
    pub text: String,
    /// Reasoning that the model wrote before its answer (`reasoning_content`, `<think>`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Why it ended.
    pub finish: Finish,
    /// Token counts.
    #[serde(default)]
    pub usage: Usage,
    /// Whether it came from the answer cache or a recording.
    #[serde(skip)]
    pub cached: bool,
}

impl Answer {
    /// Whether the model finished its turn. Anything else is a failed answer: it is not cached,
    /// and its text must not be parsed.
    pub fn complete(&self) -> bool {
        self.finish == Finish::Stop
    }

    /// The text of a complete answer; [`Error::LlmOutput`] with the reason otherwise.
    pub fn into_text(self) -> Result<String> {
        let reason = match self.finish {
            Finish::Stop => return Ok(self.text),
            Finish::Length => "was cut off at the token limit; raise max_tokens".to_owned(),
            Finish::ContentFilter => "was withheld by the endpoint's content filter".to_owned(),
            Finish::Other(reason) => format!("ended for the reason {reason:?}, expected \"stop\""),
        };
        Err(Error::LlmOutput(format!("the answer {reason}")))
    }
}

/// What options are scored after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Plain text, continued as it stands. An option should begin with the space that separates
    /// it.
    Raw(String),
    /// A conversation in the model's chat template; options begin the assistant's turn.
    Chat(Vec<Message>),
}

impl Prompt {
    pub(super) fn canonical(&self, options: &[String]) -> Value {
        match self {
            Self::Raw(text) => json!({ "raw": text, "options": options }),
            Self::Chat(messages) => {
                let messages: Vec<Value> = messages.iter().map(Message::canonical).collect();
                json!({ "messages": messages, "options": options })
            }
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
