//! Secrets are taken out of everything that a run writes about itself.

use std::sync::OnceLock;

/// What stands in place of a secret.
const MASK: &str = "***";

/// `text` without secrets: values of environment variables whose name ends in `KEY`, `TOKEN`,
/// `SECRET` or `PASSWORD`, user names and passwords in URLs, and values after `key=`, `api_key=`,
/// `token=`, `secret=`, `password=` and `Bearer `.
pub fn redact(text: &str) -> String {
    let mut text = text.to_owned();
    for secret in environment() {
        text = text.replace(secret.as_str(), MASK);
    }
    text = mask_url_users(&text);
    for marker in ["key=", "token=", "secret=", "password=", "bearer "] {
        text = mask_after(&text, marker);
    }
    text
}

pub(super) fn redact_bytes(bytes: &[u8]) -> String {
    redact(&String::from_utf8_lossy(bytes))
}

/// Values of secret-looking environment variables, longest first; read once.
fn environment() -> &'static [String] {
    static SECRETS: OnceLock<Vec<String>> = OnceLock::new();
    SECRETS.get_or_init(|| {
        let mut secrets: Vec<String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, value)| {
                let name = name.to_uppercase();
                let ends = ["KEY", "TOKEN", "SECRET", "PASSWORD"];
                // Shorter values ("1", "none") are no secrets and would eat ordinary words.
                value.len() >= 8 && ends.iter().any(|end| name.ends_with(end))
            })
            .map(|(_, value)| value)
            .collect();
        secrets.sort_by_key(|value| std::cmp::Reverse(value.len()));
        secrets
    })
}

/// `https://user:secret@host` → `https://***@host`.
fn mask_url_users(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (head, tail) = rest.split_at(start + 3);
        masked.push_str(head);
        let end =
            tail.find(|c: char| c == '/' || c.is_whitespace() || c == '"').unwrap_or(tail.len());
        match tail[..end].rfind('@') {
            Some(at) => {
                masked.push_str(MASK);
                rest = &tail[at..];
            }
            None => rest = tail,
        }
    }
    masked + rest
}

/// Masks what follows `marker` (any case) up to a separator.
fn mask_after(text: &str, marker: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut masked = String::with_capacity(text.len());
    let mut from = 0;
    while let Some(found) = lower[from..].find(marker) {
        let start = from + found + marker.len();
        let stops = |c: char| c.is_whitespace() || matches!(c, '&' | '"' | '\'' | ',' | '#' | ';');
        let end = text[start..].find(stops).map_or(text.len(), |length| start + length);
        masked.push_str(&text[from..start]);
        if end > start {
            masked.push_str(MASK);
        }
        from = end;
    }
    masked + &text[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_and_other_words_stay() {
        let cases = [
            ("openai:https://me:pw@host/v1#m", "openai:https://***@host/v1#m"),
            ("https://host/v1?api_key=abc&x=1", "https://host/v1?api_key=***&x=1"),
            ("--set llm.Token=abc", "--set llm.Token=***"),
            ("Authorization: Bearer sk-1 next", "Authorization: Bearer *** next"),
            ("user@host and key = value", "user@host and key = value"),
            ("https://a/b https://u@c/d", "https://a/b https://***@c/d"),
        ];
        for (text, expected) in cases {
            assert_eq!(redact(text), expected);
        }
    }
}
