//! LayoutAgent (arXiv 2509.22720).

pub mod conflict;
pub mod data;
pub mod eval;
pub mod layout;
pub mod model;
pub mod relations;
pub mod solve;
pub mod train;
