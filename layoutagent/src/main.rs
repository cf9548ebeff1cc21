//! Command line of `layoutagent`.

fn main() {}
