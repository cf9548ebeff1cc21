//! What is loaded: assets, weight files, frozen LLMs and encoders.

pub mod assets;
pub mod emoji;
pub mod encode;
pub mod gguf;
pub mod llm;
pub mod tokenizer;
pub mod weights;
