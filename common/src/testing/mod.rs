//! Helpers for tests: closeness, goldens, faulty servers, file mutators.
