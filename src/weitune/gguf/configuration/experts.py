"""Configurations of families with experts."""

from __future__ import annotations

from weitune.gguf.configuration.dense import granite, plain, without_window
from weitune.gguf.configuration.stored import (
    Stored,
    Values,
    biases,
    common_values,
    expert_counts,
    rope_of,
    window_values,
)

_LOG_MULTIPLIER = "yarn_log_multiplier"
_DEEPSEEK_EXPERTS = 256


def _counts(stored: Stored, count: str, width: str) -> Values:
    return expert_counts(stored, count, width, stored.one("feed_forward_length", 0))


def _local(stored: Stored) -> Values:
    return _counts(stored, "num_local_experts", "intermediate_size")


def qwen2_moe(stored: Stored) -> Values:
    """Qwen 1.5 and 2 with experts."""
    return {
        **common_values(stored),
        **_counts(stored, "num_experts", "moe_intermediate_size"),
        **biases(stored, qkv_bias="attn_q"),
        "shared_expert_intermediate_size": stored("expert_shared_feed_forward_length"),
        "norm_topk_prob": False,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }


def qwen3_moe(stored: Stored) -> Values:
    """Qwen 3 with experts."""
    return {
        **plain(stored),
        **_counts(stored, "num_experts", "moe_intermediate_size"),
        "norm_topk_prob": True,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }


def mixtral(stored: Stored) -> Values:
    """Mixtral."""
    return {**without_window(stored), **_local(stored)}


def olmoe(stored: Stored) -> Values:
    """OLMoE."""
    return {**plain(stored), **_counts(stored, "num_experts", "intermediate_size"), "norm_topk_prob": False}


def granite_moe(stored: Stored) -> Values:
    """Granite 3 with experts."""
    return {**granite(stored), **_local(stored)}


def gpt_oss(stored: Stored) -> Values:
    """gpt-oss."""
    values = {**common_values(stored), **_local(stored), **window_values(stored, 2)}
    if values["rope_parameters"]["rope_type"] == "yarn":
        values["rope_parameters"]["truncate"] = False  # as published; llama.cpp rounds, and an export says so
    return values


def minimax(stored: Stored) -> Values:
    """MiniMax M2."""
    return {**common_values(stored), **_local(stored)}


def _routed(stored: Stored) -> Values:
    """Return what families with DeepSeek's routing have.

    Early files of DeepSeek V3 do not tell its groups of experts and are refused: llama.cpp routes among all of them.
    """
    usual_groups = None if stored("expert_count") == _DEEPSEEK_EXPERTS else 1
    return {
        **_counts(stored, "n_routed_experts", "moe_intermediate_size"),
        "first_k_dense_replace": stored("leading_dense_block_count"),
        "n_shared_experts": stored("expert_shared_count"),
        "routed_scaling_factor": stored("expert_weights_scale", 1.0),
        "norm_topk_prob": stored("expert_weights_norm", False),
        "n_group": stored("expert_group_count", usual_groups),
        "topk_group": stored("expert_group_used_count", usual_groups),
    }


def glm4_moe(stored: Stored) -> Values:
    """GLM-4.5 and later, with experts."""
    return {**plain(stored), **_routed(stored), "use_qk_norm": stored.has("attn_q_norm.weight")}


def deepseek(stored: Stored) -> Values:
    """DeepSeek V3 and R1, with the two matrices that llama.cpp makes of ``kv_b_proj``."""
    heads, turned = stored.one("attention.head_count"), stored("rope.dimension_count")
    rope = rope_of(stored, turned, also=(_LOG_MULTIPLIER,))
    multiplier = stored.optional(f"rope.scaling.{_LOG_MULTIPLIER}")
    if multiplier and rope["rope_type"] == "yarn":
        rope |= {"mscale": round(multiplier / 0.1, 6), "mscale_all_dim": round(multiplier / 0.1, 6)}
    return {
        **common_values(stored, rope),
        **_routed(stored),
        **biases(stored, attention_bias="attn_q_a"),
        "num_key_value_heads": heads,
        "head_dim": turned,
        "q_lora_rank": stored.optional("attention.q_lora_rank"),
        "kv_lora_rank": stored("attention.kv_lora_rank"),
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": stored("attention.key_length_mla") - turned,
        "v_head_dim": stored("attention.value_length_mla"),
    }
