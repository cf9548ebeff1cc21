//! Command line of `llm-hyper`.

fn main() {}
