//! The text level of frozen LLMs: endpoint, cache, templates, JSON, local models.

mod endpoint;
mod json;
mod local;
