//! Tables in and out (CSV, TSV, JSONL, Parquet), with metrics and statistics beside them.

pub mod logistic;
pub mod metrics;
pub mod stats;
