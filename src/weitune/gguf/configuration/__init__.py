"""The transformers configuration of a GGUF file."""
