//! The pinned list of models and data, and how each file is found, fetched and verified.
