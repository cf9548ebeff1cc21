//! The equations: schedule, latent code, denoiser, dual encoder, rewards.

pub mod codec;
pub mod denoiser;
pub mod quality;
pub mod reward;
pub mod sample;
pub mod scorer;

pub use codec::Codec;
pub use common::diffusion::{Prediction, Schedule};
pub use denoiser::{Denoiser, DenoiserOptions, TextBatch, Word};
pub use quality::QualityHead;
pub use sample::SampleOptions;
pub use scorer::{Scorer, ScorerOptions};
