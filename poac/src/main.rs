//! Command line of `poac`.

fn main() {}
