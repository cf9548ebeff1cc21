//! CPU forward pass of frozen decoder-only LLMs (Llama, Qwen2, Gemma3).
