"""Families whose layers are attention and one feed-forward network, all of the same shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weitune.gguf.families.family import Family, Part, Parts
from weitune.gguf.families.fields import (
    common_fields,
    long_attention_factor,
    require,
    rope_factors,
    rope_of,
    window_fields,
    without_window,
)
from weitune.gguf.families.operations import added, interleaved
from weitune.gguf.metadata import Field, number, real, text

TOP: Parts = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
ATTENTION: Parts = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
FEED_FORWARD: Parts = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
NORM_BETWEEN: Parts = {"post_attention_layernorm": "ffn_norm"}
_FUSED: Parts = {**ATTENTION, "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
"""Gate and up in one matrix, as llama.cpp has them in these families too."""
LAYER: Parts = {**ATTENTION, **FEED_FORWARD, **NORM_BETWEEN}
FOUR_NORMS: Parts = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
LONG_ROPE = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}


def rotated(config: Any) -> Parts:
    """Return q and k of a family in which llama.cpp rotates neighbouring rows."""
    return rotated_heads(config.num_attention_heads, config.num_key_value_heads)


def rotated_heads(heads: int, kv_heads: int) -> Parts:
    """Return the same for numbers of heads."""
    return {
        "self_attn.q_proj": Part("attn_q", interleaved(heads)),
        "self_attn.k_proj": Part("attn_k", interleaved(kv_heads)),
    }


def plus_one(parts: Parts) -> Parts:
    """Return ``parts`` with 1 added to every norm, which transformers adds while it computes."""
    return {
        name: Part(part, added(1.0)) if isinstance(part, str) and part.endswith("norm") else part
        for name, part in parts.items()
    }


def llama(config: Any) -> Family:
    """Llama, and Mistral without a sliding window."""
    without_window(config, "llama")
    return Family("llama", {**LAYER, **rotated(config)}, TOP, common_fields(config, "llama3"), rope_factors(config))


def qwen2(config: Any) -> Family:
    """Qwen 2 and 2.5."""
    without_window(config, "qwen2")
    return Family("qwen2", LAYER, TOP, common_fields(config))


def qwen3(config: Any) -> Family:
    """Qwen 3."""
    without_window(config, "qwen3")
    return Family("qwen3", LAYER, TOP, common_fields(config))


def phi3(config: Any) -> Family:
    """Phi 3 and 4."""
    without_window(config, "phi3")
    rope = rope_of(config, "full_attention")
    original = config.original_max_position_embeddings
    computed: dict[str, Tensor] = {}
    fields: dict[str, Field] = {}
    if rope.get("rope_type") == "longrope":
        computed = {name: torch.tensor(rope[key], dtype=torch.float32) for name, key in LONG_ROPE.items()}
        scale = long_attention_factor(config)
        fields = {"rope.scaling.type": text("longrope"), "rope.scaling.attn_factor": real(scale)}
    fields = {
        **common_fields(config, "longrope"),
        **fields,
        "attention.sliding_window": number(0),
        "rope.scaling.original_context_length": number(original),
    }
    layer = {**_FUSED, **NORM_BETWEEN, "self_attn.qkv_proj": "attn_qkv"}
    return Family("phi3", layer, TOP, fields, computed)


def glm4(config: Any) -> Family:
    """GLM-4."""
    norms = {"post_self_attn_layernorm": "post_attention_norm", "post_mlp_layernorm": "post_ffw_norm"}
    return Family("glm4", {**_FUSED, **NORM_BETWEEN, **norms}, TOP, common_fields(config))


def smollm3(config: Any) -> Family:
    """SmolLM 3."""
    without_window(config, "smollm3")
    usual = [int((layer + 1) % 4 != 0) for layer in range(config.num_hidden_layers)]
    require(config.no_rope_layers == usual, "smollm3", f"no_rope_layers {config.no_rope_layers}")
    return Family("smollm3", {**LAYER, **rotated(config)}, TOP, common_fields(config, "llama3"), rope_factors(config))


def olmo2(config: Any) -> Family:
    """OLMo 2, and OLMo 3 with its windows."""
    windows = window_fields(config) if getattr(config, "sliding_window", None) else {}
    return Family("olmo2", {**LAYER, **FOUR_NORMS}, TOP, {**common_fields(config), **windows})


def exaone4(config: Any) -> Family:
    """EXAONE 4 without windows, as its 1.2B: llama.cpp knows the one with windows by its 64 layers."""
    require(config.sliding_window is None, "exaone4", f"sliding_window {config.sliding_window}")
    require(config.num_hidden_layers != 64, "exaone4", "num_hidden_layers 64")
    return Family("exaone4", {**LAYER, **FOUR_NORMS}, TOP, common_fields(config, "llama3"), rope_factors(config))


def granite(config: Any) -> Family:
    """Granite 3, without experts."""
    return Family("granite", {**LAYER, **rotated(config)}, TOP, granite_fields(config))


def granite_fields(config: Any) -> dict[str, Field]:
    """Return the metadata of all Granite models, with their multipliers."""
    return {
        **common_fields(config),
        "attention.scale": real(config.attention_multiplier),
        "embedding_scale": real(config.embedding_multiplier),
        "residual_scale": real(config.residual_multiplier),
        "logit_scale": real(config.logits_scaling),
    }


def seed_oss(config: Any) -> Family:
    """Seed-OSS."""
    layer = {**LAYER, "post_attention_layernorm": "post_attention_norm"}
    return Family("seed_oss", layer, TOP, common_fields(config))


def ernie(config: Any) -> Family:
    """ERNIE 4.5, without experts."""
    return Family("ernie4_5", LAYER, TOP, common_fields(config))


def hunyuan(config: Any) -> Family:
    """Hunyuan, without experts."""
    norms = {"self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm"}
    return Family("hunyuan-dense", {**LAYER, **norms}, TOP, common_fields(config))
