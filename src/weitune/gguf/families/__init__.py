"""Families of models in GGUF: how llama.cpp names and orders the parameters that transformers has, and the metadata."""
