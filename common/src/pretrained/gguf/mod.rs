//! GGUF files: validation in front of the reader, metadata, tensors, tokenizers.
