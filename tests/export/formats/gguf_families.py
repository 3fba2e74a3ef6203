"""The families that become GGUF files, as ``test_gguf_families`` proves it; the page of models takes them from here."""

from __future__ import annotations

from typing import Any

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "qwen2": {}, "qwen3": {},
    "gemma": {}, "gemma2": {}, "gemma3_text": {}, "gemma3": {}, "gemma4_text": {},
    "gemma4": {"use_double_wide_mlp": True, "final_logit_softcapping": 30.0}, "phi3": {}, "glm4": {},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": None}, "olmo2": {}, "olmo3": {}, "granite": {},
    "seed_oss": {}, "ernie4_5": {}, "hunyuan_v1_dense": {},
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 2},
    "qwen2_moe": {}, "qwen3_moe": {"mlp_only_layers": [], "norm_topk_prob": True}, "mixtral": {},
    "olmoe": {"num_key_value_heads": 4}, "granitemoe": {},
    "gpt_oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "deepseek_v3": {}, "minimax_m2": {},
    "glm4_moe": {}, "qwen3_next": {}, "lfm2": {}, "lfm2_moe": {},
    "falcon_h1": {},
    "qwen3_5_text": {"head_dim": 256}, "qwen3_5_moe_text": {"head_dim": 256},
}  # fmt: skip
"""Names of tests.families, with what llama.cpp takes for granted in published models."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma4_text_26b": ("gemma4_text_26b", {"num_attention_heads": 8}),
    "falcon_h1 with norms": (
        "falcon_h1",
        {
            "mamba_n_groups": 2, "mamba_rms_norm": True, "mamba_norm_before_gate": False, "tie_word_embeddings": True,
            "attention_in_multiplier": 0.8, "mlp_bias": True,
        },
    ),
}  # fmt: skip
"""Models of these families that have other parts than those above. With 8 heads, no two tokens and no two experts are
so nearly equal that the rounded GELU of Gemma decides between them."""
