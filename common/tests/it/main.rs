//! The integration tests of `common`, one file per area.

mod assets;
mod llm;
mod metrics;
mod ops;
mod report;
