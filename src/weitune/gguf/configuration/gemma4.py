"""The configuration of Gemma 4, whose layers of two kinds have heads of different size."""

from __future__ import annotations

from weitune.gguf.configuration.stored import Stored, Values, by_kind, shape_values, window_values

_DIVISORS = "rope_freqs.weight"
_NEVER = 1e29
"""Frequencies divided by more turn nothing."""
_PERIOD = 6


def gemma4(stored: Stored) -> Values:
    """Gemma 4, with experts or without."""
    windows = window_values(stored, _PERIOD)
    full = [layer for layer, kind in enumerate(windows["layer_types"]) if kind == "full_attention"]
    sliding = [layer for layer in range(stored.layers) if layer not in full] or full
    kv_heads, widths = _each(stored, "attention.head_count_kv"), _each(stored, "feed_forward_length")
    shared = int(stored("attention.shared_kv_layers", 0))
    own = stored.layers - shared
    doubled = bool(shared) and widths[own] == 2 * widths[0]
    return {
        **shape_values(stored),
        **windows,
        "head_dim": stored("attention.key_length_swa", stored.head),
        "num_key_value_heads": kv_heads[sliding[0]],
        "per_layer_config": {
            layer: {"head_dim": stored.head, "num_key_value_heads": kv_heads[layer]} for layer in full
        },
        "attention_k_eq_v": not all(_has_values(stored, layer) for layer in full if layer < own),
        "intermediate_size": widths[0],
        "use_double_wide_mlp": doubled,
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": stored("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": stored.vocabulary,
        "final_logit_softcapping": stored.optional("final_logit_softcapping"),
        "rope_parameters": by_kind(stored, _rope(stored)),
        **_experts(stored),
    }


def _has_values(stored: Stored, layer: int) -> bool:
    return f"blk.{layer}.attn_v.weight" in stored.header.tensors


def _each(stored: Stored, key: str) -> list[int]:
    found = stored(key)
    return found if isinstance(found, list) else [found] * stored.layers


def _experts(stored: Stored) -> Values:
    count = stored.optional("expert_count")
    if not count:
        return {"enable_moe_block": False}
    return {
        "enable_moe_block": True,
        "num_experts": count,
        "top_k_experts": stored("expert_used_count"),
        "moe_intermediate_size": stored("expert_feed_forward_length"),
    }


def _rope(stored: Stored) -> Values:
    """Return the rotary positions of layers without a window: a part of the pairs turns."""
    rope: Values = {"rope_type": "default", "rope_theta": stored("rope.freq_base")}
    if _DIVISORS not in stored.header.tensors:
        return rope
    divisors = stored.header.tensors[_DIVISORS].read()
    turned = int((divisors < _NEVER).sum())
    factor = float(divisors[0]) if turned else 1.0
    if turned == len(divisors) and factor == 1:
        return rope
    return {**rope, "rope_type": "proportional", "partial_rotary_factor": turned / len(divisors), "factor": factor}
