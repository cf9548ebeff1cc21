//! The integration tests of `common`, one file per area.

#![allow(clippy::unwrap_used)]

mod assets;
mod beams;
mod checkpoint;
mod data;
mod diffusion;
mod encode;
mod engine;
mod fuzz;
mod gguf;
mod hooks;
mod llm;
mod lm;
mod metrics;
mod nn;
mod ops;
mod optim;
mod recommend;
mod report;
mod tokenizer;
mod weights;
