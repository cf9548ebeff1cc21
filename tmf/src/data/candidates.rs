//! Seeded candidate lists: one positive and uniformly drawn items that the user never touched.

use std::collections::HashSet;
use std::path::Path;

use common::files::atomic_write;
use common::rng::Seed;
use common::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Dataset, Question};

/// Candidates of one question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidates {
    /// Index of the user.
    pub user: usize,
    /// Candidate items in prompt order.
    pub items: Vec<u32>,
    /// Where the positive stands.
    pub positive: usize,
}

/// For each question its answer and `count - 1` others among `pool` that the user has no event
/// with, shuffled. Each user has an own stream, so the lists of one do not depend on the others.
///
/// # Errors
/// [`Error::Data`] for a user who has touched all but fewer than `count - 1` items.
pub fn draw(
    data: &Dataset,
    questions: &[Question],
    pool: &[u32],
    count: usize,
    seed: Seed,
    purpose: &str,
) -> Result<Vec<Candidates>> {
    questions
        .iter()
        .map(|question| {
            let mut stream = seed.stream(&format!("candidates/{purpose}/{}", question.user));
            let seen: HashSet<u32> =
                data.sequences[question.user].iter().map(|step| step.item).collect();
            let unseen: Vec<u32> =
                pool.iter().copied().filter(|item| !seen.contains(item)).collect();
            if unseen.len() + 1 < count {
                return Err(Error::data(
                    format!(
                        "{} items that user {} has no event with",
                        unseen.len(),
                        data.users[question.user]
                    ),
                    format!("at least {}; lower rank.candidates", count - 1),
                ));
            }
            let mut items: Vec<u32> =
                stream.sample(unseen.len(), count - 1).into_iter().map(|at| unseen[at]).collect();
            items.push(question.answer);
            stream.shuffle(&mut items);
            let positive = items.iter().position(|&item| item == question.answer).unwrap_or(0);
            Ok(Candidates { user: question.user, items, positive })
        })
        .collect()
}

/// Writes lists as JSON lines with the ids of the source, for other systems to score.
///
/// # Errors
/// [`Error::Io`].
pub fn write(path: &Path, data: &Dataset, lists: &[Candidates]) -> Result<()> {
    let mut text = String::new();
    for list in lists {
        let items: Vec<&str> =
            list.items.iter().map(|&item| data.items[item as usize].id.as_str()).collect();
        let line = serde_json::json!({
            "user": data.users[list.user], "items": items, "positive": items[list.positive],
        });
        text.push_str(&format!("{line}\n"));
    }
    atomic_write(path, text.as_bytes())
}
