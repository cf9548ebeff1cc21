//! Rows, reports, plots and pages.

pub mod cli;
pub mod run;
