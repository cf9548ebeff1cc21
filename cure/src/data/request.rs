//! What someone asks to delete.

use common::rng::Stream;
use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Interactions, Split};

/// A deletion request over training events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Request {
    /// All training events of these users.
    Users {
        /// Ids as in the data.
        users: Vec<String>,
    },
    /// All training events of a random share of the training users.
    UserShare {
        /// Share from 0 to 1.
        share: f64,
    },
    /// A random share of all training events.
    Interactions {
        /// Share from 0 to 1.
        share: f64,
    },
    /// One user's judgement of one item.
    Pair {
        /// User id.
        user: String,
        /// Item id.
        item: String,
    },
    /// All training events with this item.
    Item {
        /// Item id.
        item: String,
    },
    /// All training events with an item of this topic (genre).
    Topic {
        /// Topic as in the data.
        topic: String,
    },
}

impl Request {
    /// A few words for tables and files.
    pub fn name(&self) -> String {
        let percent = |share: f64| format!("{} %", (share * 1e4).round() / 100.0);
        match self {
            Self::Users { users } if users.len() == 1 => format!("user {}", users[0]),
            Self::Users { users } => format!("{} named users", users.len()),
            Self::UserShare { share } => format!("{} of users", percent(*share)),
            Self::Interactions { share } => format!("{} of interactions", percent(*share)),
            Self::Pair { user, item } => format!("item {item} of user {user}"),
            Self::Item { item } => format!("item {item}"),
            Self::Topic { topic } => format!("topic {topic}"),
        }
    }

    /// The training events that the request names.
    ///
    /// # Errors
    /// [`Error::Data`] on an unknown user, item or topic; when no training event or every training
    /// event is meant.
    pub fn resolve(
        &self,
        data: &Interactions,
        split: &Split,
        stream: &mut Stream,
    ) -> Result<Deletion> {
        let mut flags: Vec<Vec<bool>> =
            data.histories.iter().map(|events| vec![false; events.len()]).collect();
        let mut mark = |user: usize, of: &dyn Fn(usize) -> bool| {
            for (event, flag) in flags[user].iter_mut().enumerate().take(split.train[user]) {
                *flag |= of(event);
            }
        };
        let item_number = |id: &str| {
            data.items.iter().position(|item| item.id == id).map(|n| n as u32).ok_or_else(|| {
                let expected = format!("one of the {} items of the data", data.items.len());
                Error::data(format!("item {id:?}"), expected)
            })
        };
        match self {
            Self::Users { users } => {
                for id in users {
                    mark(data.user(id)?, &|_| true);
                }
            }
            Self::UserShare { share } => {
                let users = split.train_users();
                let count = count_of(*share, users.len())?;
                for at in stream.sample(users.len(), count) {
                    mark(users[at], &|_| true);
                }
            }
            Self::Interactions { share } => {
                let all: Vec<(usize, usize)> = (0..split.train.len())
                    .flat_map(|user| (0..split.train[user]).map(move |event| (user, event)))
                    .collect();
                for at in stream.sample(all.len(), count_of(*share, all.len())?) {
                    let (user, event) = all[at];
                    mark(user, &|other| other == event);
                }
            }
            Self::Pair { user, item } => {
                let (user, item) = (data.user(user)?, item_number(item)?);
                mark(user, &|event| data.histories[user][event].item == item);
            }
            Self::Item { item } => {
                let item = item_number(item)?;
                for user in 0..data.users.len() {
                    mark(user, &|event| data.histories[user][event].item == item);
                }
            }
            Self::Topic { topic } => {
                if !data.items.iter().any(|item| item.topics.contains(topic)) {
                    let mut known: Vec<&str> = data
                        .items
                        .iter()
                        .flat_map(|i| i.topics.iter().map(String::as_str))
                        .collect();
                    known.sort_unstable();
                    known.dedup();
                    let expected = format!("one of {}", known.join(", "));
                    return Err(Error::data(format!("topic {topic:?}"), expected));
                }
                for user in 0..data.users.len() {
                    mark(user, &|event| {
                        let item = data.histories[user][event].item as usize;
                        data.items[item].topics.contains(topic)
                    });
                }
            }
        }
        let deletion = Deletion { flags };
        let all: usize = split.train.iter().sum();
        match deletion.events() {
            0 => Err(Error::data(
                format!("an empty forget set ({})", self.name()),
                "at least one training event; held-out users and test events were never trained on",
            )),
            n if n == all => Err(Error::data(
                format!("a forget set of all {all} training events"),
                "some events left to retain; without any, fit a new model instead",
            )),
            _ => Ok(deletion),
        }
    }
}

/// A share of `all`, at least one.
fn count_of(share: f64, all: usize) -> Result<usize> {
    if !(0.0..=1.0).contains(&share) {
        return Err(Error::usage(format!("a share of {share}; use one from 0 to 1")));
    }
    if share == 0.0 {
        return Ok(0);
    }
    Ok(((share * all as f64).round() as usize).max(1))
}

/// The events to forget, as flags per user and event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    flags: Vec<Vec<bool>>,
}

impl Deletion {
    /// Flags per user and event.
    pub fn flags(&self) -> &[Vec<bool>] {
        &self.flags
    }

    /// Number of deleted events.
    pub fn events(&self) -> usize {
        self.flags.iter().flatten().filter(|&&flag| flag).count()
    }

    /// Users with deleted events, ascending.
    pub fn users(&self) -> Vec<usize> {
        (0..self.flags.len()).filter(|&user| self.flags[user].iter().any(|&flag| flag)).collect()
    }

    /// The deletion without events that `mask` does not keep.
    pub fn within(&self, mask: &[Vec<bool>]) -> Self {
        let user = |(deleted, kept): (&Vec<bool>, &Vec<bool>)| {
            deleted.iter().zip(kept).map(|(&deleted, &kept)| deleted && kept).collect()
        };
        Self { flags: self.flags.iter().zip(mask).map(user).collect() }
    }

    /// `mask` without the deleted events.
    pub fn retained(&self, mask: &[Vec<bool>]) -> Vec<Vec<bool>> {
        let user = |(kept, deleted): (&Vec<bool>, &Vec<bool>)| {
            kept.iter().zip(deleted).map(|(&kept, &deleted)| kept && !deleted).collect()
        };
        mask.iter().zip(&self.flags).map(user).collect()
    }
}
