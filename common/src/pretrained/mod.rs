//! What is loaded: assets, weight files, frozen LLMs and encoders, Stable Diffusion folders.

pub mod assets;
pub mod emoji;
pub mod encode;
pub mod gguf;
pub mod llm;
pub mod stable_diffusion;
pub mod tokenizer;
pub mod weights;
