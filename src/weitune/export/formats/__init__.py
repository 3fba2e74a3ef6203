"""The formats of an export: merged safetensors, GGUF, a GGUF adapter, and Ollama."""
