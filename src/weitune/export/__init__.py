"""Exports: a run's adapter, made into what other programs run, and proof that they say the same.

    base's files ── base_weights ─┐
                                  ├─▶ MergedWeights ─┬─▶ merged      safetensors for transformers and vLLM
    adapter ─── adapter_weights ──┘                  ├─▶ gguf        one file for llama.cpp
                      │                              └─▶ ollama      that file and a Modelfile
                      └────────────────────────────────▶ gguf-adapter

Weights flow one tensor at a time, so memory holds the largest tensor, not the model.
"""
