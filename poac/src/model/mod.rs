//! The equations: schedule, latent code, denoiser, dual encoder, rewards.

pub mod codec;
pub mod denoiser;
pub mod quality;
pub mod reward;
pub mod sample;
pub mod schedule;
pub mod scorer;

pub use codec::Codec;
pub use denoiser::{Denoiser, DenoiserOptions, TextBatch, Word};
pub use quality::QualityHead;
pub use sample::SampleOptions;
pub use schedule::{Prediction, Schedule};
pub use scorer::{Scorer, ScorerOptions};
