//! Command line of `tmf`.

fn main() {}
