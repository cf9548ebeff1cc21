//! x
pub mod crowd;
pub mod recorded;
