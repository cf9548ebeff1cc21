//! Integration tests of `poac`, one binary.

#![allow(clippy::unwrap_used)]

mod cli;
mod data;
mod golden;
mod learning;
mod ppo;
mod stable;
mod toy;
mod weights;
