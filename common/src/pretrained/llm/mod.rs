//! Frozen LLMs for prompting.

pub mod engine;
