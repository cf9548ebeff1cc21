//! Finds special tokens in text.

use super::Special;
use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

/// Longest special token that is matched, in bytes; it bounds the automaton's size.
pub(super) const MAX_LENGTH: usize = 512;

/// Splits text at special and user-defined tokens: leftmost first, then longest.
pub(super) struct Splitter {
    all: Matcher,
    user_defined: Matcher,
}

struct Matcher {
    automaton: AhoCorasick,
    ids: Vec<u32>,
}

impl Matcher {
    fn new(tokens: &[(String, u32)]) -> Result<Self, String> {
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(tokens.iter().map(|(token, _)| token))
            .map_err(|error| format!("its special tokens can't be searched for: {error}"))?;
        Ok(Self { automaton, ids: tokens.iter().map(|&(_, id)| id).collect() })
    }
}

impl Splitter {
    /// Both lists hold the text and id of each token; no text is empty.
    pub(super) fn new(
        special: Vec<(String, u32)>,
        user_defined: Vec<(String, u32)>,
    ) -> Result<Self, String> {
        let longest = special.iter().chain(&user_defined).map(|(token, _)| token.len()).max();
        if longest > Some(MAX_LENGTH) {
            return Err(format!("a special token is longer than {MAX_LENGTH} bytes"));
        }
        let user = Matcher::new(&user_defined)?;
        let all: Vec<_> = special.into_iter().chain(user_defined).collect();
        Ok(Self { all: Matcher::new(&all)?, user_defined: user })
    }

    /// The pieces of `text` in order: tokens with their id, and what lies between them.
    pub(super) fn split<'t>(&self, text: &'t str, special: Special) -> Vec<(&'t str, Option<u32>)> {
        let matcher = match special {
            Special::Parse => &self.all,
            Special::AsText => &self.user_defined,
        };
        let mut pieces = Vec::new();
        let mut end = 0;
        for found in matcher.automaton.find_iter(text) {
            if found.start() > end {
                pieces.push((&text[end..found.start()], None));
            }
            end = found.end();
            let id = matcher.ids[found.pattern().as_usize()];
            pieces.push((&text[found.range()], Some(id)));
        }
        if end < text.len() {
            pieces.push((&text[end..], None));
        }
        pieces
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn special_text_is_split_only_when_parsed() {
        let splitter =
            Splitter::new(vec![("<|end|>".into(), 7)], vec![("\n".into(), 1), ("\n\n".into(), 2)])
                .unwrap();
        let text = "a\n\n\n<|end|>b";
        let parsed = splitter.split(text, Special::Parse);
        let expected =
            [("a", None), ("\n\n", Some(2)), ("\n", Some(1)), ("<|end|>", Some(7)), ("b", None)];
        assert_eq!(parsed, expected);
        let plain = splitter.split(text, Special::AsText);
        assert_eq!(plain, [("a", None), ("\n\n", Some(2)), ("\n", Some(1)), ("<|end|>b", None)]);
        assert!(splitter.split("", Special::Parse).is_empty());
    }
}
