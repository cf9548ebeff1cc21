//! How a user names an LLM: `gguf:…`, `hf:…`, `openai:…`, `replay:…`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use url::Url;

use crate::{Error, Result};

/// Which LLM, as written after `--llm`.
///
/// | form | meaning |
/// |---|---|
/// | `gguf:model.gguf`, `gguf:smollm2-135m-instruct` | a local GGUF file, or an asset id |
/// | `hf:HuggingFaceTB/SmolLM2-135M@main`, `hf:./folder` | a hub repository at a revision, or a folder with `config.json` |
/// | `openai:http://localhost:8000/v1#my-model` | an OpenAI-compatible endpoint and the model's name there |
/// | `replay:answers.jsonl`, `replay:answers.jsonl#openai:…` | recorded answers; the part after `#` picks one model of the file |
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LlmSpec {
    /// A GGUF file by path or asset id.
    Gguf(String),
    /// A hub repository (`owner/name`) or a local folder.
    Hf {
        /// `owner/name`, or the path of a folder.
        repo: String,
        /// Branch, tag or commit.
        revision: Option<String>,
    },
    /// An OpenAI-compatible chat endpoint.
    Endpoint {
        /// With or without the trailing `/v1`; without user, password, query or fragment.
        base: Url,
        /// The name that the endpoint knows the model by.
        model: String,
    },
    /// A file of recorded answers.
    Replay {
        /// JSON lines as the answer cache writes them.
        file: PathBuf,
        /// The recorded model, needed when the file holds several.
        model: Option<String>,
    },
}

const FORMS: &str = "gguf:PATH-or-asset-id, hf:REPO[@rev], openai:BASE_URL#MODEL or replay:FILE";

impl FromStr for LlmSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |problem: &str| Error::usage(format!("LLM {text:?}: {problem}; write {FORMS}"));
        let (kind, rest) = text.split_once(':').ok_or_else(|| bad("no kind before ':'"))?;
        if rest.is_empty() {
            return Err(bad("nothing after ':'"));
        }
        match kind {
            "gguf" => Ok(Self::Gguf(rest.to_owned())),
            "hf" => {
                let (repo, revision) = match rest.rsplit_once('@') {
                    Some((repo, revision)) if !revision.contains('/') => (repo, Some(revision)),
                    _ => (rest, None),
                };
                if repo.is_empty() || revision == Some("") {
                    return Err(bad("the repository or its revision is empty"));
                }
                Ok(Self::Hf { repo: repo.to_owned(), revision: revision.map(str::to_owned) })
            }
            "openai" => endpoint(rest).map_err(|problem| {
                // The text may hold a password: it is not repeated here.
                Error::usage(format!("LLM endpoint: {problem}; write openai:BASE_URL#MODEL"))
            }),
            "replay" => {
                let (file, model) = match rest.split_once('#') {
                    Some((file, model)) => (file, Some(model.to_owned())),
                    None => (rest, None),
                };
                if file.is_empty() || model.as_deref() == Some("") {
                    return Err(bad("the file or the model is empty"));
                }
                Ok(Self::Replay { file: file.into(), model })
            }
            _ => Err(bad("unknown kind")),
        }
    }
}

fn endpoint(rest: &str) -> Result<LlmSpec, String> {
    let (base, model) = rest.split_once('#').ok_or("no '#MODEL' after the base URL")?;
    if model.is_empty() {
        return Err("no model name after '#'".to_owned());
    }
    let base = Url::parse(base).map_err(|error| format!("the base URL is invalid ({error})"))?;
    if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        return Err("the base URL must begin with http:// or https://".to_owned());
    }
    if !base.username().is_empty() || base.password().is_some() || base.query().is_some() {
        return Err("the base URL must not hold a user, password or query; the key belongs into \
                    the environment variable SEPTET_API_KEY"
            .to_owned());
    }
    Ok(LlmSpec::Endpoint { base, model: model.to_owned() })
}

impl fmt::Display for LlmSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gguf(file) => write!(f, "gguf:{file}"),
            Self::Hf { repo, revision: None } => write!(f, "hf:{repo}"),
            Self::Hf { repo, revision: Some(revision) } => write!(f, "hf:{repo}@{revision}"),
            Self::Endpoint { base, model } => {
                write!(f, "openai:{}#{model}", base.as_str().trim_end_matches('/'))
            }
            Self::Replay { file, model: None } => write!(f, "replay:{}", file.display()),
            Self::Replay { file, model: Some(model) } => {
                write!(f, "replay:{}#{model}", file.display())
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_form_survives_a_round_trip() {
        for text in [
            "gguf:smollm2-135m-instruct",
            "gguf:/models/a b.gguf",
            "hf:HuggingFaceTB/SmolLM2-135M",
            "hf:HuggingFaceTB/SmolLM2-135M@v1.0",
            "hf:./folder",
            "openai:http://localhost:8000/v1#qwen2.5:0.5b",
            "openai:https://api.example.org#org/model",
            "replay:answers.jsonl",
            "replay:answers.jsonl#openai:http://localhost:8000/v1#m",
        ] {
            assert_eq!(text.parse::<LlmSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn wrong_forms_are_usage_errors() {
        for text in [
            "",
            "model.gguf",
            "gguf:",
            "gpt:4",
            "openai:localhost#m",
            "openai:http://h",
            "openai:http://h#",
            "openai:ftp://h#m",
            "openai:http://h/v1?k=1#m",
            "hf:a/b@",
            "replay:#m",
            "replay:f#",
        ] {
            let error = text.parse::<LlmSpec>().unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}: {error}");
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        let error = "openai:http://me:hunter22@h/v1#m".parse::<LlmSpec>().unwrap_err();
        assert!(!error.to_string().contains("hunter22"), "{error}");
    }
}
