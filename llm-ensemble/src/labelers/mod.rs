//! Labelers: whoever answers "which label of attribute q has product p?" (the paper's LLMs, and
//! its rule and logistic regression baselines).
//!
//! | labeler | from | needs |
//! |---|---|---|
//! | [`Scoring`] | log-probability that an LLM gives to every label | a local LLM |
//! | [`Prompted`] | parsed reply to a list, schema or question prompt (§3.4) | any LLM |
//! | [`ZeroShot`] | cosine of MiniLM embeddings of text and label description | MiniLM |
//! | [`Keywords`] | keyword hits | keywords in the schema |
//! | [`Logistic`] | multinomial logistic regression | a labelled train file |
//! | [`Recorded`] | a vote file | |

mod build;
mod keywords;
mod logistic;
mod prompted;
pub mod prompts;
mod recorded;
mod score;
mod tfidf;
mod zero_shot;

use common::Result;
use serde::{Deserialize, Serialize};

pub use build::{Builder, build};
pub use keywords::Keywords;
pub use logistic::Logistic;
pub use prompted::Prompted;
pub use recorded::Recorded;
pub use score::Scoring;
pub use tfidf::Tfidf;
pub use zero_shot::ZeroShot;

use crate::data::{Attribute, Product};

/// One labeler's answer about one (product, attribute).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Index into the attribute's labels; `None` = missing (W = 0 in the paper's notation).
    pub label: Option<usize>,
    /// The reply could not be read as a label or as "unknown".
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unusable: bool,
    /// The LLM's reply, for an audit.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
}

impl Answer {
    /// A label.
    pub fn label(index: usize) -> Self {
        Self { label: Some(index), ..Self::default() }
    }

    /// No opinion.
    pub fn missing() -> Self {
        Self::default()
    }
}

/// Answers questions about products. Labelers are chosen by configuration at run time.
pub trait Labeler: Send + Sync {
    /// The worker's name in the vote file.
    fn name(&self) -> &str;

    /// How many calls of [`Labeler::answer`] may run at once.
    fn in_flight(&self) -> usize {
        1
    }

    /// How many products one call takes at most.
    fn batch(&self) -> usize {
        1
    }

    /// One answer per product and attribute, in the given order.
    ///
    /// # Errors
    /// `LlmOutput` when this request can't be answered, `Temporary` when it may be later; both
    /// concern the given products only. Anything else ends the run.
    fn answer(&self, products: &[&Product], attributes: &[&Attribute]) -> Result<Vec<Vec<Answer>>>;
}

/// Index of the largest finite value; the first of equals; `None` if there is none.
fn argmax(scores: impl IntoIterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, score) in scores.into_iter().enumerate() {
        if score.is_finite() && best.is_none_or(|(_, top)| score > top) {
            best = Some((index, score));
        }
    }
    best.map(|(index, _)| index)
}
