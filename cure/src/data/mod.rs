//! Who liked what and when; splits, deletion requests, prompts of both sides.

mod files;
mod request;
mod synthetic;

use common::{Error, Result};
use serde::{Deserialize, Serialize};

pub use files::{from_movielens, read_interactions};
pub use request::{Deletion, Request};
pub use synthetic::{Synthetic, synthetic};

use crate::prompt::{Prompt, Vocabulary};

/// One item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its id in the source.
    pub id: String,
    /// Title.
    pub title: String,
    /// Topics, for example genres; may be empty.
    pub topics: Vec<String>,
}

/// A user's judgement of an item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Event {
    /// Index into [`Interactions::items`].
    pub item: u32,
    /// Whether the item was liked.
    pub liked: bool,
}

/// Histories of users, numbered from 0, over numbered items.
#[derive(Debug, Clone, PartialEq)]
pub struct Interactions {
    /// Id of every user in the source.
    pub users: Vec<String>,
    /// Items.
    pub items: Vec<Item>,
    /// Events of every user, oldest first.
    pub histories: Vec<Vec<Event>>,
}

impl Interactions {
    /// Number of events of all users.
    pub fn events(&self) -> usize {
        self.histories.iter().map(Vec::len).sum()
    }

    /// The number of the user called `id`.
    ///
    /// # Errors
    /// [`Error::Data`] when there is none; it names the id.
    pub fn user(&self, id: &str) -> Result<usize> {
        self.users.iter().position(|user| user == id).ok_or_else(|| {
            Error::data(
                format!("user {id:?}"),
                format!("one of the {} users of the data", self.users.len()),
            )
        })
    }

    /// The first `users` of the users in an order drawn from `stream`; all when there are fewer.
    pub fn sample_users(&self, users: usize, stream: &mut common::rng::Stream) -> Self {
        let mut kept = stream.permutation(self.users.len());
        kept.truncate(users);
        kept.sort_unstable();
        Self {
            users: kept.iter().map(|&user| self.users[user].clone()).collect(),
            items: self.items.clone(),
            histories: kept.iter().map(|&user| self.histories[user].clone()).collect(),
        }
    }
}

/// Which events train, tune and test. Users without any training event were never seen by a model
/// fitted on the split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Events of every user that train: the first so many. 0 for held-out users.
    pub train: Vec<usize>,
    /// End of each user's tuning events, which follow the training events; test events follow.
    pub valid: Vec<usize>,
    /// Users held out whole.
    pub held_out: Vec<bool>,
}

impl Split {
    /// Holds out `share` of the users (drawn from `stream`); of the others the first 80 % of the
    /// events train, the next 10 % tune, the last 10 % test.
    pub fn new(data: &Interactions, share: f64, stream: &mut common::rng::Stream) -> Self {
        let users = data.users.len();
        let mut held_out = vec![false; users];
        for user in stream.sample(users, (share * users as f64).round() as usize) {
            held_out[user] = true;
        }
        let part = |user: usize, tenths: usize| data.histories[user].len() * tenths / 10;
        let train = (0..users).map(|u| if held_out[u] { 0 } else { part(u, 8) }).collect();
        let valid = (0..users).map(|u| if held_out[u] { 0 } else { part(u, 9) }).collect();
        Self { train, valid, held_out }
    }

    /// Users with training events, ascending.
    pub fn train_users(&self) -> Vec<usize> {
        (0..self.train.len()).filter(|&user| self.train[user] > 0).collect()
    }

    /// The training events as flags per user and event, none deleted.
    pub fn train_mask(&self, data: &Interactions) -> Vec<Vec<bool>> {
        data.histories
            .iter()
            .zip(&self.train)
            .map(|(events, &train)| (0..events.len()).map(|event| event < train).collect())
            .collect()
    }
}

/// Windows of `length` events that cover `events` once; the first may be shorter.
fn windows(events: usize, length: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let first = events % length;
    let starts =
        std::iter::once(0).filter(move |_| first > 0).chain((first..events).step_by(length));
    starts.map(move |start| start..if start == 0 && first > 0 { first } else { start + length })
}

/// Prompts of one data set under one vocabulary.
#[derive(Debug, Clone, Copy)]
pub struct Prompts<'a> {
    /// The histories.
    pub data: &'a Interactions,
    /// The tokens.
    pub vocabulary: &'a Vocabulary,
    /// Most history items before the target.
    pub history: usize,
    /// Fewest history items before the target of a record.
    pub least: usize,
    /// The events that the model knows, as flags per user and event: users without any are unknown.
    pub known: &'a [Vec<bool>],
}

impl Prompts<'_> {
    /// Windows that cover the events which `mask` keeps, as if there were no others.
    pub fn windows(&self, mask: &[Vec<bool>]) -> Vec<Window> {
        let mut all = Vec::new();
        for (user, flags) in mask.iter().enumerate() {
            let kept: Vec<usize> = (0..flags.len()).filter(|&event| flags[event]).collect();
            for range in windows(kept.len(), self.history + 1) {
                all.push(Window { user, asked: range.len(), events: kept[range].to_vec() });
            }
        }
        all
    }

    /// What the prompts of a user begin with.
    pub fn first(&self, user: usize) -> u32 {
        let known = self.known[user].iter().any(|&known| known);
        self.vocabulary.first(known.then_some(user))
    }

    /// The prompt of a window; its answers are those of the events that it asks for.
    pub fn of_window(&self, window: &Window) -> Prompt {
        let history = &self.data.histories[window.user];
        let events = window.events.iter().map(|&event| (history[event].item, history[event].liked));
        let events: Vec<(u32, bool)> = events.collect();
        self.vocabulary.window(self.first(window.user), &events).last_answers(window.asked)
    }

    /// Prompts of windows.
    pub fn of_windows(&self, windows: &[Window]) -> Vec<Prompt> {
        windows.iter().map(|window| self.of_window(window)).collect()
    }

    /// Windows over the events that `mask` keeps: what a model trains on.
    pub fn of_mask(&self, mask: &[Vec<bool>]) -> Vec<Prompt> {
        self.of_windows(&self.windows(mask))
    }

    /// The training windows over `mask` that hold events of `deleted`, with their prompts; only the
    /// answers of deleted events are asked.
    pub fn deleted(&self, mask: &[Vec<bool>], deleted: &Deletion) -> Vec<(Window, Prompt)> {
        let flags = deleted.flags();
        let mut all = Vec::new();
        for window in self.windows(mask) {
            let is_deleted = |event: &usize| flags[window.user][*event];
            if window.events.iter().any(is_deleted) {
                let mut prompt = self.of_window(&window);
                let mut asked = window.events.iter().map(is_deleted);
                prompt.answers.retain(|_| asked.next().unwrap_or(false));
                all.push((window, prompt));
            }
        }
        all
    }

    /// Windows that ask for the events `range(user)` of every user of `users`, each after at least
    /// [`Prompts::least`] others. One window asks for several events, the last of which has the whole
    /// history before it and the first at least half of it.
    pub fn records(
        &self,
        users: &[usize],
        range: impl Fn(usize) -> std::ops::Range<usize>,
    ) -> Vec<Window> {
        let most = (self.history + 1).div_ceil(2);
        let mut all = Vec::new();
        for &user in users {
            let range = range(user);
            let mut start = range.start.max(self.least);
            while start < range.end {
                let end = range.end.min(start + most);
                let first = end.saturating_sub(self.history + 1);
                all.push(Window { user, asked: end - start, events: (first..end).collect() });
                start = end;
            }
        }
        all
    }
}

/// Events of one user that follow each other, deleted ones left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Whose.
    pub user: usize,
    /// By number in the user's history, ascending.
    pub events: Vec<usize>,
    /// The last so many of them are asked for.
    pub asked: usize,
}

impl Window {
    /// The events that are asked for.
    pub fn asked_events(&self) -> &[usize] {
        &self.events[self.events.len() - self.asked.min(self.events.len())..]
    }

    /// The last `count` events, the last of which is asked for.
    pub fn tail(&self, count: usize) -> Self {
        let first = self.events.len().saturating_sub(count);
        Self { user: self.user, events: self.events[first..].to_vec(), asked: 1 }
    }
}
