//! CPU inference of frozen decoder-only models at the level of token ids.
//!
//! A [`Model`] holds the weights, a [`Session`] the tokens seen so far with their keys and values:
//!
//! ```no_run
//! # fn main() -> common::Result<()> {
//! use common::llm::engine::{Model, Precision, Session};
//! let gguf = common::gguf::Gguf::open("model.gguf".as_ref())?;
//! let model = Model::from_gguf(&gguf, Precision::Auto)?;
//! let mut session = Session::new(&model);
//! let mut logits = session.append(&[1, 42, 7])?; // the prompt
//! for _ in 0..10 {
//!     let token = common::llm::engine::argmax(&logits);
//!     logits = session.step(token)?; // one generated token
//! }
//! let scores = session.score_options(&[vec![3, 4], vec![5]])?;
//! # Ok(())
//! # }
//! ```
//!
//! **Two ways to compute.** [`Session::append`] and [`Session::score_options`] multiply in f32,
//! with the weights as stored. [`Session::step`] rounds activations to int8 by blocks of 32, as
//! llama.cpp does, where weights are quantised: a step reads all weights for one token, and then
//! memory bandwidth decides. The choice depends on the function called, never on the number of
//! tokens, so a prompt gives the same logits however it is cut into pieces.
//!
//! **Memory.** Per weight 4 bytes with [`Precision::F32`], 2 with [`Precision::F16`], and 0.625
//! (4-bit formats) or 1.06 (others) with [`Precision::Quantised`]; a session adds
//! `2 · layers · key/value width · 4` bytes per token of capacity, and some MB of buffers.
//!
//! **Threads.** Work is spread over the current rayon pool; sums do not depend on the threads.

mod attention;
mod config;
#[allow(unsafe_code)]
mod kernels;
mod load;
mod matrix;
mod model;
mod packing;
mod score;
mod session;
mod trainable;

pub use config::{Architecture, ModelConfig, SlidingWindow};
pub use model::{Model, Precision};
pub use score::OptionScore;
pub use session::{Session, argmax};
pub use trainable::trainable;
