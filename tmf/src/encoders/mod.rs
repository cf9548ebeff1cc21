//! Frozen encoders of the three modalities.

pub mod clip;
pub mod efficientnet;
pub mod graph;
pub mod image;
pub mod legacy_torch;
pub mod mbht;
pub mod seeded;
