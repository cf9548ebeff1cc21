//! The vocabulary: byte-level BPE trained on the catalogue's titles, plus one special token per
//! behaviour and placeholder (paper: behaviour and item tokens are added to the vocabulary; their
//! form is our choice).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use common::tokenizer::{Special, Tokenizer};
use common::{Error, Result};
use serde_json::{Value, json};

/// Ends the answer.
pub const END: &str = "\n";
const PAD: &str = "[PAD]";
const TEXT_ONLY: &str = "[PH]";
const ITEM: &str = "[ItemEmb]";
const CANDIDATE: &str = "[CansEmb]";
const NEXT: &str = "<next>";

/// A tokenizer with the ids of the special tokens.
#[derive(Debug)]
pub struct Vocabulary {
    tokenizer: Tokenizer,
    json: String,
    /// Fills short rows.
    pub pad: u32,
    /// Placeholder of a text-only prompt.
    pub text_only: u32,
    /// Placeholder whose embedding an event's fused vector overwrites.
    pub item: u32,
    /// Placeholder whose embedding a candidate's fused vector overwrites.
    pub candidate: u32,
    /// Asks for the next item whatever its behaviour.
    pub next: u32,
    /// One token per behaviour, `<b_NAME>`.
    pub behaviours: Vec<u32>,
    /// The token of [`END`].
    pub end: u32,
}

impl Vocabulary {
    /// Trains `merges` BPE merges on `texts`, each with how often it occurs, and adds the special
    /// tokens. The same texts give the same vocabulary.
    ///
    /// # Errors
    /// None but bugs.
    pub fn train(
        texts: &[(impl AsRef<str>, usize)],
        merges: usize,
        behaviours: &[impl AsRef<str>],
    ) -> Result<Self> {
        let learnt = learn_merges(texts, merges);
        let symbols = byte_symbols();
        let mut vocabulary: Vec<String> = symbols.to_vec();
        let mut pairs = Vec::with_capacity(learnt.len());
        for (left, right) in learnt {
            let joined = format!("{}{}", vocabulary[left], vocabulary[right]);
            pairs.push(json!([vocabulary[left], vocabulary[right]]));
            vocabulary.push(joined);
        }
        let names = [PAD, TEXT_ONLY, ITEM, CANDIDATE, NEXT].map(str::to_owned);
        let named = behaviours.iter().map(|name| format!("<b_{}>", name.as_ref()));
        let specials: Vec<Value> = names
            .into_iter()
            .chain(named)
            .enumerate()
            .map(|(at, content)| {
                json!({
                    "id": vocabulary.len() + at, "content": content, "special": true,
                    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                })
            })
            .collect();
        let ids: BTreeMap<&str, usize> =
            vocabulary.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
        let pieces = r" ?\(\d{4}\)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s";
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": specials,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pieces}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            ]},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "byte_fallback": false, "ignore_merges": false, "vocab": ids, "merges": pairs},
        });
        Self::from_json(tokenizer.to_string(), behaviours, Path::new("the trained tokenizer"))
    }

    /// Takes over a `tokenizer.json` that [`Vocabulary::train`] made; `name` stands for it in error
    /// messages.
    ///
    /// # Errors
    /// [`Error::Asset`] when a special token is absent.
    pub fn from_json(json: String, behaviours: &[impl AsRef<str>], name: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::from_json(json.as_bytes(), name)?;
        let id = |token: &str| {
            tokenizer.id_of(token).ok_or_else(|| {
                Error::asset(
                    name.display().to_string(),
                    format!("there is no token {token}"),
                    "use the tokenizer.json that was saved with the model",
                )
            })
        };
        let end = tokenizer.encode(END, Special::AsText)?;
        let &[end] = &end[..] else { return Err(Error::Bug("the end is one token".into())) };
        Ok(Self {
            pad: id(PAD)?,
            text_only: id(TEXT_ONLY)?,
            item: id(ITEM)?,
            candidate: id(CANDIDATE)?,
            next: id(NEXT)?,
            behaviours: behaviours
                .iter()
                .map(|name| id(&format!("<b_{}>", name.as_ref())))
                .collect::<Result<_>>()?,
            end,
            tokenizer,
            json,
        })
    }

    /// The `tokenizer.json`.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// Number of tokens.
    pub fn size(&self) -> usize {
        self.tokenizer.vocabulary_size()
    }

    /// Tokens of a text from data: special tokens in it are ordinary text.
    ///
    /// # Errors
    /// None but bugs.
    pub fn text(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, Special::AsText)
    }

    /// Tokens of a title: a leading space, line breaks as spaces, at most `most` tokens.
    ///
    /// # Errors
    /// None but bugs.
    pub fn title(&self, title: &str, most: usize) -> Result<Vec<u32>> {
        // a byte gives at most one token, so a huge title need not be encoded whole
        let words: Vec<&str> = title.split_whitespace().collect();
        let line: String = format!(" {}", words.join(" ")).chars().take(16 * most).collect();
        let mut tokens = self.text(&line)?;
        tokens.truncate(most.max(1));
        Ok(tokens)
    }

    /// The text of `tokens` without special tokens.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens)
    }
}

/// GPT-2's printable stand-in of each byte.
fn byte_symbols() -> [String; 256] {
    let mut spare = 0;
    std::array::from_fn(|byte| {
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if printable {
            byte as u32
        } else {
            spare += 1;
            255 + spare
        };
        char::from_u32(code).map(String::from).unwrap_or_default()
    })
}

/// Pieces between which no merge reaches: an optional space and a year in brackets, or a run of
/// letters, digits or others.
fn pieces(text: &str) -> Vec<&str> {
    let class = |c: char| match c {
        c if c.is_whitespace() => 0,
        c if c.is_alphabetic() => 1,
        c if c.is_numeric() => 2,
        _ => 3,
    };
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let space = usize::from(first == ' ');
        let end = match rest[space..].chars().next().map(class) {
            None | Some(0) => first.len_utf8(),
            _ if is_year(&rest.as_bytes()[space..]) => space + 6,
            Some(kind) => {
                let run = rest[space..].char_indices().find(|(_, c)| class(*c) != kind);
                run.map_or(rest.len(), |(at, _)| space + at)
            }
        };
        found.push(&rest[..end]);
        rest = &rest[end..];
    }
    found
}

/// Whether a text begins with a year in brackets.
fn is_year(text: &[u8]) -> bool {
    text.len() >= 6
        && text[0] == b'('
        && text[5] == b')'
        && text[1..5].iter().all(u8::is_ascii_digit)
}

/// Byte-pair encoding (Sennrich et al. 2016): joins the most frequent pair, the earliest ids on a
/// tie, until `merges` are found or no pair occurs twice. Symbols below 256 are bytes.
fn learn_merges(texts: &[(impl AsRef<str>, usize)], merges: usize) -> Vec<(usize, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (text, count) in texts {
        for piece in pieces(text.as_ref()) {
            *counts.entry(piece).or_default() += count;
        }
    }
    let mut words: Vec<(Vec<usize>, usize)> = counts
        .into_iter()
        .map(|(word, count)| (word.bytes().map(usize::from).collect(), count))
        .collect();
    let mut pairs: HashMap<(usize, usize), usize> = HashMap::new();
    for (word, count) in &words {
        for pair in word.windows(2) {
            *pairs.entry((pair[0], pair[1])).or_default() += count;
        }
    }
    let mut learnt = Vec::new();
    while learnt.len() < merges {
        let best = pairs.iter().max_by_key(|&(pair, count)| (count, std::cmp::Reverse(pair)));
        let Some((&pair, 2..)) = best else { break };
        let joined = 256 + learnt.len();
        learnt.push(pair);
        for (word, count) in &mut words {
            if !word.windows(2).any(|two| (two[0], two[1]) == pair) {
                continue;
            }
            for two in word.windows(2) {
                pairs.entry((two[0], two[1])).and_modify(|total| *total -= *count);
            }
            let mut at = 0;
            while at + 1 < word.len() {
                if (word[at], word[at + 1]) == pair {
                    word[at] = joined;
                    word.remove(at + 1);
                }
                at += 1;
            }
            for two in word.windows(2) {
                *pairs.entry((two[0], two[1])).or_default() += *count;
            }
        }
    }
    learnt
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn vocabulary() -> Vocabulary {
        let titles = [" Star Wars (1977)", " Star Trek (1979)", " Star Trek II (1982)"];
        let titles = titles.map(|title| (title, 3));
        Vocabulary::train(&titles, 60, &["view", "buy"]).unwrap()
    }

    #[test]
    fn merges_are_learnt_and_text_comes_back() {
        let vocabulary = vocabulary();
        assert_eq!(
            pieces(" Star Trek: II (1982)x"),
            [" Star", " Trek", ":", " II", " (1982)", "x"]
        );
        assert_eq!(vocabulary.text(" Star Wars (1977)").unwrap().len(), 3);
        for text in [" Star Wars (1977)", " Ünïcode ☃ (2001)"] {
            assert_eq!(vocabulary.decode(&vocabulary.text(text).unwrap()).unwrap(), text);
        }
        assert_eq!(vocabulary.size(), vocabulary.behaviours[1] as usize + 1);
    }

    #[test]
    fn special_tokens_in_titles_are_text() {
        let vocabulary = vocabulary();
        let tokens = vocabulary.title("a [ItemEmb] <b_buy>\n\n[PAD]", 64).unwrap();
        let first_special = vocabulary.pad;
        assert!(tokens.iter().all(|&token| token < first_special && token != vocabulary.end));
        assert_eq!(vocabulary.title(&"x".repeat(10_000), 12).unwrap().len(), 12);
        assert!(!vocabulary.title("", 12).unwrap().is_empty());
    }
}
