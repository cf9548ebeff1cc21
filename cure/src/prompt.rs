//! Yes/No prompts over a user's history, as token ids.
//!
//! A prompt is `user item₁ answer₁ item₂ answer₂ … item`, oldest first; the answer to an item is the
//! token `Yes` (liked) or `No`, and the model is asked for the answer after the last item. Every item
//! takes the same number of tokens (words of its title, padded, and a token of its own), so that it
//! can be exchanged for another without moving anything else. Users may have a token of their own
//! too; those whom the model does not know begin with `<bos>`. Since the model is causal, a window of
//! `history + 1` events holds the prompts of all its prefixes, and training asks for every answer
//! in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Fills titles with fewer words than the budget, and windows of a batch to a common length.
pub const PAD: u32 = 0;
/// Begins the prompt of an unknown user.
pub const BOS: u32 = 1;
/// Answer: not liked.
pub const NO: u32 = 2;
/// Answer: liked.
pub const YES: u32 = 3;
const RESERVED: [&str; 4] = ["<pad>", "<bos>", "No", "Yes"];

/// The answer token of a label.
pub fn answer_token(liked: bool) -> u32 {
    if liked { YES } else { NO }
}

/// The tokens of items and users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vocabulary {
    /// Tokens of an item, see the module.
    pub item_tokens: usize,
    /// Token → word.
    pub words: Vec<String>,
    /// Item number → its tokens, `item_tokens` each.
    items: Vec<Vec<u32>>,
    /// Token of the first user; those of the others follow.
    first_user: Option<u32>,
}

impl Vocabulary {
    /// The vocabulary of these titles, `title_tokens` words a title: of longer titles the words that
    /// the fewest titles have, in the title's order.
    pub fn of_titles<'a>(
        titles: impl Iterator<Item = &'a str> + Clone,
        title_tokens: usize,
    ) -> Self {
        let mut titles_with: BTreeMap<String, usize> = BTreeMap::new();
        for title in titles.clone() {
            let mut words = words_of(title);
            words.sort_unstable();
            words.dedup();
            for word in words {
                *titles_with.entry(word).or_default() += 1;
            }
        }
        let mut ids: BTreeMap<String, u32> = BTreeMap::new();
        let mut words: Vec<String> = RESERVED.map(str::to_owned).to_vec();
        let mut items = Vec::new();
        for title in titles {
            let all = words_of(title);
            let mut kept: Vec<usize> = (0..all.len()).collect();
            kept.sort_by_key(|&at| (titles_with[&all[at]], at));
            kept.truncate(title_tokens);
            kept.sort_unstable();
            let mut tokens: Vec<u32> = kept
                .into_iter()
                .map(|at| {
                    *ids.entry(all[at].clone()).or_insert_with(|| {
                        words.push(all[at].clone());
                        words.len() as u32 - 1
                    })
                })
                .collect();
            tokens.resize(title_tokens, PAD);
            items.push(tokens);
        }
        Self { item_tokens: title_tokens, words, items, first_user: None }
    }

    /// The same with a token of its own after each item's title; one id per item.
    pub fn with_items<'a>(mut self, ids: impl Iterator<Item = &'a str>) -> Self {
        for (tokens, id) in self.items.iter_mut().zip(ids) {
            tokens.push(self.words.len() as u32);
            self.words.push(format!("item:{id}"));
        }
        self.item_tokens += 1;
        self
    }

    /// The same with a token for each user.
    pub fn with_users<'a>(mut self, ids: impl Iterator<Item = &'a str>) -> Self {
        self.first_user = Some(self.words.len() as u32);
        self.words.extend(ids.map(|id| format!("user:{id}")));
        self
    }

    /// The token of a user; `None` where users have none.
    pub fn user(&self, user: usize) -> Option<u32> {
        self.first_user.map(|first| first + user as u32)
    }

    /// What a prompt begins with: the user's token, [`BOS`] for an unknown user and where users have
    /// no tokens.
    pub fn first(&self, user: Option<usize>) -> u32 {
        user.and_then(|user| self.user(user)).unwrap_or(BOS)
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there is no token; never the case for one made of titles.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.items.len()
    }

    /// Tokens of an item.
    pub fn item(&self, item: u32) -> &[u32] {
        &self.items[item as usize]
    }

    /// Tokens of a window of `events` events, without its last answer.
    pub fn window_tokens(&self, events: usize) -> usize {
        events * (self.item_tokens + 1)
    }

    /// The window of `events` (item, liked) that begins with the token `first`, all answers asked.
    pub fn window(&self, first: u32, events: &[(u32, bool)]) -> Prompt {
        let mut ids = Vec::with_capacity(self.window_tokens(events.len()) + 1);
        ids.push(first);
        let mut answers = Vec::with_capacity(events.len());
        for &(item, liked) in events {
            ids.extend_from_slice(self.item(item));
            answers.push(Answer { position: ids.len() - 1, liked });
            ids.push(answer_token(liked));
        }
        ids.pop();
        Prompt { ids, answers }
    }
}

/// Lower-case letters and digits, apostrophes kept.
fn words_of(title: &str) -> Vec<String> {
    let lower = title.to_lowercase();
    lower
        .split(|c: char| !(c.is_alphanumeric() || c == '\''))
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Where an answer is asked, and the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Position of the token after which the answer comes.
    pub position: usize,
    /// Yes or No.
    pub liked: bool,
}

/// Token ids with the answers that are asked in them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prompt {
    /// Tokens.
    pub ids: Vec<u32>,
    /// Ascending by position.
    pub answers: Vec<Answer>,
}

impl Prompt {
    /// The prompt with its last `count` answers only.
    pub fn last_answers(mut self, count: usize) -> Self {
        let first = self.answers.len().saturating_sub(count);
        self.answers.drain(..first);
        self
    }

    /// The prompt as of an unknown user.
    pub fn of_unknown(&self) -> Self {
        let mut prompt = self.clone();
        if let Some(first) = prompt.ids.first_mut() {
            *first = BOS;
        }
        prompt
    }
}

/// Number of answers in all prompts.
pub fn answers(prompts: &[Prompt]) -> usize {
    prompts.iter().map(|prompt| prompt.answers.len()).sum()
}

/// Labels of all answers, in order.
pub fn labels(prompts: &[Prompt]) -> Vec<bool> {
    prompts.iter().flat_map(|prompt| prompt.answers.iter().map(|answer| answer.liked)).collect()
}

/// A hash of all tokens and answers.
pub fn fingerprint(windows: &[Prompt]) -> String {
    let mut bytes = Vec::new();
    for window in windows {
        for id in &window.ids {
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        for answer in &window.answers {
            bytes.extend_from_slice(&(answer.position as u32).to_le_bytes());
            bytes.push(u8::from(answer.liked));
        }
        bytes.push(0xff);
    }
    common::run::hash8(&bytes)
}
