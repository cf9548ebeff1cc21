//! The equations: attribution, circuits, contributions and groups, losses, update rules. No I/O.

pub mod attribution;
pub mod circuit;
pub mod groups;
pub mod losses;
pub mod network;
pub mod recommender;
pub mod tokens;
pub mod update;

pub use attribution::{Pairs, Scores};
pub use circuit::Circuit;
pub use groups::{Group, Grouping};
pub use network::{Edge, Network};
pub use recommender::Recommender;
