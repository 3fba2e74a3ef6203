"""The shapes of families of models, small enough for two cores: 100 to 300 million parameters in true proportions.

Each is a published model made narrower and shallower: hidden to inner size, size of a head, query heads to key-value
heads, kinds of layers and windows are its own, up to whole numbers. Experts are fewer where the published ones would
not fit; a token goes to as many as in the published model, so that experts have their share of the work. The
vocabulary is VOCABULARY for all, or the output head would outweigh so few blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VOCABULARY = 16_384


def _layers(*pattern: str, count: int) -> list[str]:
    """Return the kinds of ``count`` layers, which repeat ``pattern``.

    s: sliding window, f: full attention, l: linear attention.
    """
    names = {"s": "sliding_attention", "f": "full_attention", "l": "linear_attention"}
    return [names[pattern[k % len(pattern)]] for k in range(count)]


def _attention(heads: int, groups: int, size: int) -> dict[str, int]:
    return {"num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": size}


SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama": {  # Llama 3.2 1B
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, **_attention(16, 4, 64),
    },
    "gemma2": {  # Gemma 2 2B
        "hidden_size": 1152, "intermediate_size": 4608, "num_hidden_layers": 6, **_attention(4, 2, 256),
        "query_pre_attn_scalar": 256, "sliding_window": 4096, "layer_types": _layers("s", "f", count=6),
    },
    "gemma3_text": {  # Gemma 3 4B
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 6, **_attention(4, 2, 256),
        "query_pre_attn_scalar": 256, "sliding_window": 1024, "layer_types": _layers(*"sssssf", count=6),
    },
    "gemma4_text": {  # Gemma 4 E2B
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 10, **_attention(4, 1, 256),
        "sliding_window": 512, "layer_types": _layers(*"ssssf", count=10), "num_kv_shared_layers": 5,
        "per_layer_config": {"04": {"head_dim": 512}, "09": {"head_dim": 512}},
        "hidden_size_per_layer_input": 128, "vocab_size_per_layer_input": VOCABULARY,
    },
    "phi3": {  # Phi-4-mini
        "hidden_size": 1024, "intermediate_size": 2736, "num_hidden_layers": 10,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
    },
    "olmo2": {  # OLMo 2 1B
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 7,
        "num_attention_heads": 8, "num_key_value_heads": 8,
    },
    "olmo3": {  # OLMo 3 7B
        "hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 8, "sliding_window": 4096,
        "layer_types": _layers(*"sssf", count=8),
    },
    "glm4": {  # GLM-4-9B-0414
        "hidden_size": 1024, "intermediate_size": 3424, "num_hidden_layers": 8, **_attention(8, 1, 128),
        "attention_bias": True,
    },
    "smollm3": {  # SmolLM3 3B
        "hidden_size": 1024, "intermediate_size": 5504, "num_hidden_layers": 6,
        "num_attention_heads": 8, "num_key_value_heads": 2, "no_rope_layers": [1, 1, 1, 0, 1, 1],
    },
    "exaone4": {  # EXAONE 4 32B: windows in three of four layers, no rotary embedding in the fourth
        "hidden_size": 1024, "intermediate_size": 5504, "num_hidden_layers": 6,
        "num_attention_heads": 8, "num_key_value_heads": 2, "sliding_window": 4096,
        "layer_types": _layers(*"sssf", count=6),
    },
    "cohere2": {  # Command R7B
        "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 8, **_attention(8, 2, 128),
        "sliding_window": 4096, "layer_types": _layers(*"sssf", count=8), "logit_scale": 0.25,
    },
    "hunyuan_v1_dense": {  # Hunyuan 1.8B
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 10, **_attention(8, 2, 128),
    },
    "qwen3_5_text": {  # Qwen3.5 0.8B, with 8 of its 24 layers: the gated delta rule in three of four
        "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 8, **_attention(8, 2, 256),
        "layer_types": _layers(*"lllf", count=8), "linear_num_key_heads": 16, "linear_num_value_heads": 16,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
    },
    "qwen3_moe": {  # Qwen3-30B-A3B, with 64 of its 128 experts
        "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 5, **_attention(12, 2, 128),
        "num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 288, "norm_topk_prob": True,
    },
    "gpt_oss": {  # gpt-oss-20b, with its 32 experts
        "hidden_size": 720, "intermediate_size": 720, "num_hidden_layers": 4, **_attention(16, 2, 64),
        "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128,
        "layer_types": _layers("s", "f", count=4),
    },
    "glm4_moe": {  # GLM-4.5-Air, with 64 of its 128 experts
        "hidden_size": 640, "intermediate_size": 1712, "num_hidden_layers": 7, **_attention(16, 1, 128),
        "n_routed_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 224, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "attention_bias": True,
    },
    "deepseek_v3": {  # DeepSeek-V3, with 64 of its 256 experts
        "hidden_size": 704, "intermediate_size": 1824, "num_hidden_layers": 6, "num_attention_heads": 12,
        "num_key_value_heads": 12, "q_lora_rank": 160, "kv_lora_rank": 64, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 64, "num_experts_per_tok": 8,
        "moe_intermediate_size": 208, "n_shared_experts": 1, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 1,
    },
}  # fmt: skip


def shape(family: str) -> dict[str, Any]:
    """Return the arguments of the configuration of ``family``, ``model_type`` among them."""
    return {
        "model_type": family,
        "vocab_size": VOCABULARY,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "pad_token_id": 0,
        **SHAPES[family],
    }
