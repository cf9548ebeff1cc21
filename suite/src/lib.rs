//! Runs the benchmark of every paper as a child process and merges what they print.
//!
//! The papers are the members of the workspace other than `common` and `suite`. Each one's
//! `bench --json` runs on its own; a paper that fails, crashes, hangs or prints something else
//! becomes a row that says so, and the others go on.

pub mod assets;
pub mod child;
pub mod compare;
pub mod papers;
pub mod results;
pub mod run;
