//! Tables in and out (CSV, TSV, JSONL, Parquet), splits, metrics and statistics.
//!
//! ```no_run
//! use common::data::{ReadOptions, Table};
//!
//! # fn main() -> common::Result<()> {
//! let options = ReadOptions::select(&["item", "worker", "label"]);
//! let votes = Table::read("votes.csv".as_ref(), &options)?;
//! let items = votes.column("item")?.non_empty()?;
//! # Ok(())
//! # }
//! ```

pub mod graph;
pub mod logistic;
pub mod metrics;
pub mod movielens;
mod read;
pub mod split;
pub mod stats;
mod table;
mod write;

pub use crate::files::{atomic_with, atomic_write};
pub use read::{Duplicates, Format, ReadOptions, Row, visit};
pub use table::{Cell, Column, Table};
pub use write::{Values, write, write_as};
