"""The GGUF file format of llama.cpp: header, names of a model's parts, metadata and vocabulary."""
