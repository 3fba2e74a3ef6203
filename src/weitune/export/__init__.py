"""Exports: a run's model in the formats of other programs, verified against base + adapter.

    base's files ── base_weights ─┐
                                  ├─▶ MergedWeights ─┬─▶ merged      safetensors for transformers and vLLM
    adapter ─── adapter_weights ──┘                  ├─▶ gguf        one file for llama.cpp
                      │                              └─▶ ollama      that file and a Modelfile
                      └────────────────────────────────▶ gguf-adapter

Weights flow one tensor at a time, so memory holds the largest tensor, not the model.
"""
