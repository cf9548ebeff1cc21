//! Data: generated worlds, NSR-1K, scene files and the hand-written product scenes.

pub mod nsr1k;
pub mod scene;
pub mod worlds;
