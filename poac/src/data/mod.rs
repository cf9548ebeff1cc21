//! The emoji world: objects with pictures and human keywords, abstract concepts, splits, prompts.

pub mod gate;
pub mod pairs;
pub mod pictures;
pub mod vocabulary;
pub mod world;

pub use gate::Gate;
pub use pictures::{Images, Style};
pub use vocabulary::Vocabulary;
pub use world::{Concept, Object, World, WorldOptions};

/// Longest prompt that is accepted, in characters.
pub const MAX_PROMPT: usize = 2_000;

/// A user's prompt made fit for use: control characters become spaces, runs of spaces one.
///
/// # Errors
/// [`common::Error::Data`] when nothing is left or the prompt is over [`MAX_PROMPT`] characters.
pub fn clean_prompt(text: &str) -> common::Result<String> {
    let length = text.chars().count();
    if length > MAX_PROMPT {
        return Err(common::Error::data(
            format!("a prompt of {length} characters"),
            format!("at most {MAX_PROMPT}; shorten it"),
        ));
    }
    let spaced: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let cleaned = spaced.split_whitespace().collect::<Vec<_>>().join(" ");
    if cleaned.is_empty() {
        return Err(common::Error::data("an empty prompt", "a few words, such as \"wisdom\""));
    }
    Ok(cleaned)
}
