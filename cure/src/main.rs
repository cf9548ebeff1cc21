//! Command line of `cure`.

fn main() {}
