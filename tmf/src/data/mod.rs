//! Catalogue and multi-behaviour sequences, from MovieLens, from a user's tables or generated.

pub mod candidates;
pub mod movielens;
pub mod synthetic;
pub mod tables;

use std::path::PathBuf;

/// An item of the catalogue.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Item {
    /// Id in the source.
    pub id: String,
    /// What prompts and answers show.
    pub title: String,
    /// What the text encoder reads; empty = the item has no text.
    pub text: String,
    /// Picture file; `None` = the item has none.
    pub image: Option<PathBuf>,
}

/// One event of a user: (i_t, b_t) of §1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Step {
    /// Index of the item.
    pub item: u32,
    /// Index of the behaviour.
    pub behaviour: u32,
}

/// Items, users' sequences and links of items to nodes of a knowledge graph.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dataset {
    /// Name for tables and messages.
    pub name: String,
    /// The catalogue.
    pub items: Vec<Item>,
    /// Ids of the users.
    pub users: Vec<String>,
    /// Names of the behaviours.
    pub behaviours: Vec<String>,
    /// Behaviour to predict; `None` = the next item whatever its behaviour.
    pub target: Option<u32>,
    /// Events of each user, oldest first.
    pub sequences: Vec<Vec<Step>>,
    /// Item and node of the knowledge graph; nodes count from 0.
    pub links: Vec<(u32, u32)>,
}

/// What is held out of each user's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The event before the last one of the target behaviour.
    Valid,
    /// The last event of the target behaviour.
    Test,
}

/// A question: what does `user` do after `history`?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Index of the user.
    pub user: usize,
    /// Events before, oldest first.
    pub history: Vec<Step>,
    /// The item that came.
    pub answer: u32,
}

impl Dataset {
    /// Position in `sequence` of the event that `part` holds out; `None` where the user has too
    /// few.
    fn held_out(&self, sequence: &[Step], part: Part) -> Option<usize> {
        let wanted = |step: &Step| self.target.is_none_or(|target| target == step.behaviour);
        let mut positions = (1..sequence.len()).rev().filter(|&at| wanted(&sequence[at]));
        let (test, valid) = (positions.next(), positions.next());
        // a user needs both, so that training, validation and test do not overlap
        let (test, valid) = (test?, valid?);
        match part {
            Part::Test => (valid >= 1).then_some(test),
            Part::Valid => (valid >= 1).then_some(valid),
        }
    }

    /// The questions of `part`, one per user that has at least one event before two held-out ones
    /// of the target behaviour (leave one out).
    pub fn questions(&self, part: Part) -> Vec<Question> {
        (0..self.sequences.len())
            .filter_map(|user| {
                let sequence = &self.sequences[user];
                let at = self.held_out(sequence, part)?;
                let (history, answer) = (sequence[..at].to_vec(), sequence[at].item);
                Some(Question { user, history, answer })
            })
            .collect()
    }

    /// Every user's events before the one that `part` holds out; all events of a user without one.
    pub fn before(&self, part: Part) -> Vec<Vec<Step>> {
        let cut = |sequence: &Vec<Step>| match self.held_out(sequence, part) {
            Some(at) => sequence[..at].to_vec(),
            None => sequence.clone(),
        };
        self.sequences.iter().map(cut).collect()
    }
}
