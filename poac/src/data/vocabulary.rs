//! Words and names as tokens.

use std::collections::BTreeMap;

/// Words of templates besides concepts and names. `<eos>` is token 0 and also pads.
const WORDS: [&str; 16] = [
    "<eos>", "rephrase", ":", ",", "a", "an", "and", "in", "of", "with", "picture", "image",
    "showing", "colour", "grey", "the",
];

/// Tokens: template words, then names and keywords, each a whole token however many words it has.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    tokens: Vec<String>,
    ids: BTreeMap<String, u32>,
    longest: usize,
    /// Ids of the objects' names: `first_name..first_name + names`.
    first_name: u32,
    names: u32,
}

impl Vocabulary {
    /// The token that ends a text.
    pub const EOS: u32 = 0;

    /// Template words first, then the objects' `names`, then further `words`, each once.
    pub fn new<'a>(
        names: impl IntoIterator<Item = &'a str>,
        words: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let mut all = Self {
            tokens: Vec::new(),
            ids: BTreeMap::new(),
            longest: 1,
            first_name: WORDS.len() as u32,
            names: 0,
        };
        for word in WORDS {
            all.add(word);
        }
        for name in names {
            all.add(name);
        }
        all.names = all.len() as u32 - all.first_name;
        for word in words {
            all.add(word);
        }
        all
    }

    /// The object whose name the token is.
    pub fn object(&self, id: u32) -> Option<usize> {
        let at = id.checked_sub(self.first_name)?;
        (at < self.names).then_some(at as usize)
    }

    /// The id after template words and names: the first word that names no object.
    pub fn first_word(&self) -> usize {
        (self.first_name + self.names) as usize
    }

    /// Adds a word if it is new; its id.
    pub fn add(&mut self, word: &str) -> u32 {
        if let Some(&id) = self.ids.get(word) {
            return id;
        }
        let id = self.tokens.len() as u32;
        self.tokens.push(word.to_owned());
        self.ids.insert(word.to_owned(), id);
        self.longest = self.longest.max(word.split(' ').count());
        id
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Never: the template words are there.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// All tokens in the order of their ids.
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// The id of a word or name.
    pub fn id(&self, word: &str) -> Option<u32> {
        self.ids.get(word).copied()
    }

    /// Whether a token says what is to be seen: a name, keyword or style, not a template word.
    pub fn is_content(&self, id: u32) -> bool {
        id as usize >= WORDS.len()
            || matches!(self.tokens.get(id as usize).map(String::as_str), Some("colour" | "grey"))
    }

    /// The longest known phrases from left to right, lower case; also the words that are unknown.
    pub fn encode(&self, text: &str) -> (Vec<u32>, Vec<String>) {
        let spaced = text.to_lowercase().replace(',', " , ").replace(':', " : ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        let (mut ids, mut unknown) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < words.len() {
            let most = self.longest.min(words.len() - at);
            let hit = (1..=most)
                .rev()
                .find_map(|count| self.id(&words[at..at + count].join(" ")).map(|id| (id, count)));
            match hit {
                Some((id, count)) => {
                    ids.push(id);
                    at += count;
                }
                None => {
                    unknown.push(words[at].to_owned());
                    at += 1;
                }
            }
        }
        (ids, unknown)
    }

    /// Tokens as text.
    pub fn decode(&self, ids: &[u32]) -> String {
        let words = ids.iter().filter(|&&id| id != Self::EOS);
        let words: Vec<&str> =
            words.filter_map(|&id| self.tokens.get(id as usize)).map(String::as_str).collect();
        words.join(" ").replace(" ,", ",").replace(" :", ":")
    }
}
