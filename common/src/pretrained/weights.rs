//! Safetensors files: validation against what a model expects.
