//! The integration tests of `common`, one file per area.

mod assets;
mod checkpoint;
mod data;
mod encode;
mod engine;
mod fuzz;
mod llm;
mod metrics;
mod ops;
mod optim;
mod report;
