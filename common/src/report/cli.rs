//! Command-line flags and config layers shared by all binaries.
