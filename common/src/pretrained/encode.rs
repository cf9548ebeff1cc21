//! Frozen text encoders (MiniLM), batched by length and cached on disk.
