//! Command line of `crab`.

fn main() {}
