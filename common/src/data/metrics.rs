//! Metrics: pure functions with their formula and edge cases.
