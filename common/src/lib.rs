//! Tensors, pretrained models, data, metrics and reports: the base that the seven papers of
//! Septet stand on. Every module is usable alone.
//!
//! | wing | modules | what it holds |
//! |---|---|---|
//! | tensor | [`runtime`], [`rng`], [`ops`], [`nn`], [`lm`], [`diffusion`], [`optim`], [`checkpoint`], [`recommend`] | what trains |
//! | pretrained | [`assets`], [`gguf`], [`tokenizer`], [`weights`], [`llm`], [`encode`], [`emoji`], [`stable_diffusion`] | what is loaded |
//! | data | [`data`], [`metrics`], [`stats`], [`logistic`], [`graph`] | what is measured |
//! | report | [`report`], [`run`], [`cli`] | what is shown |
//!
//! Arrows run one way: report → data → error and pretrained → tensor → error.
//! Only [`assets`] and [`llm`] open sockets; nothing here prints.

pub mod data;
pub mod error;
pub mod files;
mod pretrained;
pub mod report;
mod tensor;
#[cfg(feature = "testing")]
pub mod testing;

/// The README's example, run as a test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

pub use data::{graph, logistic, metrics, stats};
pub use error::{Error, Result};
pub use pretrained::{assets, emoji, encode, gguf, llm, stable_diffusion, tokenizer, weights};
pub use report::{cli, run};
pub use tensor::{checkpoint, diffusion, lm, nn, ops, optim, recommend, rng, runtime};
