//! JSON out of what an LLM wrote.

use serde_json::Value;

/// Deeper nesting is refused; serde_json's own limit is the same.
const MAX_DEPTH: usize = 127;
/// Longer texts are refused.
const MAX_BYTES: usize = 32 << 20;

/// What [`extract`] found.
#[derive(Debug, Clone, PartialEq)]
pub enum Extracted {
    /// The text is JSON as it stands.
    Ok(Value),
    /// The JSON is whole, but the text around or inside it is not as asked.
    Repaired {
        /// The value.
        value: Value,
        /// What had to be overlooked, each kind once.
        repairs: Vec<Repair>,
    },
    /// No value that can be trusted, with the reason.
    Failed(String),
}

/// A departure from plain JSON that leaves no doubt about the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Words before or after the JSON.
    TextAround,
    /// A Markdown code fence around it.
    CodeFence,
    /// A comma before a closing bracket.
    TrailingComma,
}

impl Extracted {
    /// The value, however it was found.
    pub fn value(&self) -> Option<&Value> {
        match self {
            Self::Ok(value) | Self::Repaired { value, .. } => Some(value),
            Self::Failed(_) => None,
        }
    }
}

/// The one JSON object or array of `text`.
///
/// Words around it, a code fence and trailing commas are overlooked and reported. Text that is cut
/// off, numbers that JSON does not know (NaN, 1e999), nesting deeper than 127, and several
/// different values are failures: nothing is guessed. Where prose holds arrays beside one object,
/// the object counts. Of equal keys the last one counts. A bare string or number is only taken
/// when it is the whole text.
pub fn extract(text: &str) -> Extracted {
    if text.len() > MAX_BYTES {
        let found = text.len();
        return Extracted::Failed(format!("{found} bytes, expected at most {MAX_BYTES}"));
    }
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Extracted::Failed("the answer is empty".to_owned());
    }
    if let Ok(value) = serde_json::from_str(trimmed) {
        return Extracted::Ok(value);
    }
    match candidates(trimmed) {
        Ok(found) => choose(trimmed, found),
        Err(reason) => Extracted::Failed(reason),
    }
}

struct Candidate {
    value: Value,
    /// Byte range in the text.
    start: usize,
    end: usize,
    trailing_comma: bool,
}

fn choose(text: &str, mut found: Vec<Candidate>) -> Extracted {
    if found.iter().any(|candidate| candidate.value.is_object()) {
        found.retain(|candidate| candidate.value.is_object());
    }
    let count = found.len();
    let mut found = found.into_iter();
    let Some(first) = found.next() else {
        return Extracted::Failed("the answer holds no JSON object or array".to_owned());
    };
    if found.any(|other| other.value != first.value) {
        return Extracted::Failed(format!("{count} different JSON values, expected one"));
    }
    let (before, after) = (text[..first.start].trim(), text[first.end..].trim());
    let fenced = before.ends_with("```")
        || before.rsplit_once("```").is_some_and(|(_, tag)| {
            !tag.is_empty() && tag.chars().all(|c| c.is_ascii_alphanumeric())
        });
    let bare = before.is_empty() && after.is_empty();
    let only_fence = fenced && before.matches("```").count() == 1 && before.starts_with("```");
    let mut repairs = Vec::new();
    if !(bare || only_fence && after == "```") {
        repairs.push(Repair::TextAround);
    }
    if fenced {
        repairs.push(Repair::CodeFence);
    }
    if first.trailing_comma {
        repairs.push(Repair::TrailingComma);
    }
    Extracted::Repaired { value: first.value, repairs }
}

/// Every outermost object and array that is whole. An error when one is begun but cut off or
/// wrong, as the value meant may be that one.
fn candidates(text: &str) -> Result<Vec<Candidate>, String> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = bytes[at..].iter().position(|b| matches!(b, b'{' | b'[')) {
        let start = at + start;
        at = start + 1;
        let next = bytes[at..].iter().find(|byte| !byte.is_ascii_whitespace());
        let (likely, serious) = match (bytes[start], next) {
            (b'{', Some(b'"' | b'}' | b'\'')) => (true, true),
            (b'[', Some(b'{' | b'[' | b'"')) => (true, true),
            (b'[', Some(b']' | b'-' | b'0'..=b'9')) => (true, false),
            // Cut off directly behind the bracket.
            (_, None) => return Err(cut_off()),
            _ => (false, false),
        };
        if !likely {
            continue;
        }
        let span = span(bytes, start)?;
        let cleaned = without_bytes(&text[start..span.end], start, &span.commas);
        match serde_json::from_str(&cleaned) {
            Ok(value) => found.push(Candidate {
                value,
                start,
                end: span.end,
                trailing_comma: !span.commas.is_empty(),
            }),
            Err(error) if serious => return Err(format!("the JSON is invalid: {error}")),
            // Something like "[1, p. 3]" in prose.
            Err(_) => {}
        }
        at = span.end;
    }
    Ok(found)
}

struct Span {
    /// Just behind the closing bracket.
    end: usize,
    /// Positions of commas that stand before a closing bracket.
    commas: Vec<usize>,
}

/// From the bracket at `start` to the one that closes it.
fn span(bytes: &[u8], start: usize) -> Result<Span, String> {
    let mut open = Vec::new();
    let mut commas = Vec::new();
    // The last comma since which there was only white space.
    let mut comma = None;
    let mut at = start;
    while at < bytes.len() {
        let byte = bytes[at];
        match byte {
            b'{' | b'[' => {
                if open.len() == MAX_DEPTH {
                    return Err(format!("the JSON is nested deeper than {MAX_DEPTH}"));
                }
                open.push(byte);
            }
            b'}' | b']' => {
                let opened = open.pop();
                if opened != Some(if byte == b'}' { b'{' } else { b'[' }) {
                    return Err("the brackets of the JSON do not match".to_owned());
                }
                commas.extend(comma);
                if open.is_empty() {
                    return Ok(Span { end: at + 1, commas });
                }
            }
            b'"' => at = string_end(bytes, at)?,
            _ => {}
        }
        if byte == b',' {
            comma = Some(at);
        } else if !byte.is_ascii_whitespace() {
            comma = None;
        }
        at += 1;
    }
    Err(cut_off())
}

/// The position of the quotation mark that closes the one at `start`.
fn string_end(bytes: &[u8], start: usize) -> Result<usize, String> {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'"' => return Ok(at),
            _ => {}
        }
        at += 1;
    }
    Err(cut_off())
}

fn cut_off() -> String {
    "the JSON is cut off".to_owned()
}

/// `text`, which begins at byte `offset`, without the ASCII bytes at `positions` (ascending).
fn without_bytes(text: &str, offset: usize, positions: &[usize]) -> String {
    let mut cleaned = String::with_capacity(text.len());
    let mut from = 0;
    for &position in positions {
        cleaned.push_str(&text[from..position - offset]);
        from = position - offset + 1;
    }
    cleaned.push_str(&text[from..]);
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn repaired(text: &str) -> (Value, Vec<Repair>) {
        match extract(text) {
            Extracted::Repaired { value, repairs } => (value, repairs),
            other => panic!("{text}: {other:?}"),
        }
    }

    fn failed(text: &str) -> String {
        match extract(text) {
            Extracted::Failed(reason) => reason,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn plain_json_is_ok() {
        assert_eq!(extract(" {\"a\": [1, 2]}\n"), Extracted::Ok(json!({ "a": [1, 2] })));
        assert_eq!(extract("\"Tops\""), Extracted::Ok(json!("Tops")));
        assert_eq!(extract("null"), Extracted::Ok(Value::Null));
    }

    #[test]
    fn departures_are_flagged() {
        let value = json!({ "a": 1 });
        for (text, expected) in [
            ("Here it is: {\"a\": 1}. Bye", vec![Repair::TextAround]),
            ("```json\n{\"a\": 1}\n```", vec![Repair::CodeFence]),
            ("```\n{\"a\": 1,}\n```", vec![Repair::CodeFence, Repair::TrailingComma]),
            ("Sure!\n```json\n{\"a\": 1}\n```", vec![Repair::TextAround, Repair::CodeFence]),
            ("{\"a\": 1 , }", vec![Repair::TrailingComma]),
            ("As in [1] and {x}: {\"a\": 1}", vec![Repair::TextAround]),
            ("{\"a\": 1} I repeat: {\"a\":1}", vec![Repair::TextAround]),
        ] {
            assert_eq!(repaired(text), (value.clone(), expected), "{text}");
        }
        assert_eq!(repaired("x [{\"k\": \"},]\"}]").0, json!([{ "k": "},]" }]));
    }

    #[test]
    fn doubtful_text_fails_with_the_reason() {
        for (text, reason) in [
            ("", "empty"),
            ("no idea", "no JSON"),
            ("{\"a\": 1", "cut off"),
            ("{\"a\": \"x", "cut off"),
            ("{\"a\": \"x\\", "cut off"),
            ("Sure: {", "cut off"),
            ("{\"a\": NaN}", "invalid"),
            ("{\"a\": 1e999}", "invalid"),
            ("{\"a\": -Infinity}", "invalid"),
            ("{'a': 1}", "invalid"),
            ("{\"a\": {\"b\": 1}, \"c\": NaN}", "invalid"),
            ("{\"a\": [1}", "do not match"),
            ("{\"a\": 1} or {\"a\": 2}", "2 different"),
            ("{\"a\": 1,, }", "invalid"),
        ] {
            assert!(failed(text).contains(reason), "{text}: {}", failed(text));
        }
        assert!(failed(&"[".repeat(10_000)).contains("deeper"));
        assert!(failed(&"{\"a\":".repeat(10_000)).contains("deeper"));
    }
}
