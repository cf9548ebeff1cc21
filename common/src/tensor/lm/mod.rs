//! Trainable decoder-only language models, GPT-2-shaped and Llama-shaped (with Qwen2's biases), under
//! the tensor names and `config.json` of transformers.
//!
//! ```no_run
//! use common::lm::{Lm, LmConfig, Pass};
//! use common::optim::{AdamW, AdamWOptions, Gradients};
//! use common::rng::Seed;
//! # fn main() -> common::Result<()> {
//! let model = Lm::new(&LmConfig::llama(500, 64, 2, 4, 128), Seed::new(1))?;
//! let mut optimiser = AdamW::new(model.parameters(), AdamWOptions::default());
//! let ids = candle_core::Tensor::new(&[[1u32, 2, 3, 4]], &candle_core::Device::Cpu)?;
//! let loss = model.loss(&ids, &ids, Pass::default())?;
//! optimiser.step(&Gradients::of(&loss, model.parameters())?, 1e-3)?;
//! model.save(std::path::Path::new("model"))?; // AutoModelForCausalLM.from_pretrained("model")
//! # Ok(())
//! # }
//! ```

mod config;
mod files;
mod generate;
mod hooks;
mod model;

pub use config::{Architecture, LmConfig};
pub use files::save_lora;
pub use generate::{Allowed, BeamOptions, EarlyStopping, Hypothesis};
pub use hooks::{Hooks, Reader, Writer};
pub use model::{Lm, LmCache, Pass};
