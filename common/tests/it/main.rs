//! The integration tests of `common`, one file per area.

mod assets;
mod llm;
mod ops;
