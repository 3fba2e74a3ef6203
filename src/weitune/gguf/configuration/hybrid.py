"""Configurations of families with recurrent layers beside attention."""

from __future__ import annotations

from weitune.gguf.configuration.stored import (
    Stored,
    Values,
    biases,
    common_values,
    expert_counts,
    rope_of,
    shape_values,
)


def _delta_rule(stored: Stored) -> Values:
    """Return what families with the gated delta rule have."""
    interval, heads = stored("full_attention_interval", 4), stored("ssm.time_step_rank")
    kinds = ["linear_attention" if (layer + 1) % interval else "full_attention" for layer in range(stored.layers)]
    return {
        **common_values(stored),
        "layer_types": kinds,
        "linear_conv_kernel_dim": stored("ssm.conv_kernel"),
        "linear_key_head_dim": stored("ssm.state_size"),
        "linear_num_key_heads": stored("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_value_head_dim": stored("ssm.inner_size") // heads,
    }


def _experts(stored: Stored) -> Values:
    return {
        **expert_counts(stored, "num_experts", "moe_intermediate_size"),
        "shared_expert_intermediate_size": stored("expert_shared_feed_forward_length"),
        "norm_topk_prob": True,
        "mlp_only_layers": [],
    }


def qwen3_next(stored: Stored) -> Values:
    """Qwen3-Next."""
    return {**_delta_rule(stored), **_experts(stored)}


def qwen3_5(stored: Stored) -> Values:
    """Qwen 3.5, without experts."""
    values = _delta_rule(stored)
    sections = stored("rope.dimension_sections")[:3]
    return {**values, "rope_parameters": {**values["rope_parameters"], "mrope_section": sections}}


def qwen3_5_moe(stored: Stored) -> Values:
    """Qwen 3.5 with experts."""
    return {**qwen3_5(stored), **_experts(stored)}


def lfm2(stored: Stored) -> Values:
    """LFM 2: layers without keys and values are short convolutions."""
    values, kv_heads = shape_values(stored), stored("attention.head_count_kv")
    kinds = ["full_attention" if heads else "conv" for heads in kv_heads]
    return {
        **values,
        "norm_eps": values["rms_norm_eps"],
        "intermediate_size": stored.one("feed_forward_length"),
        "block_auto_adjust_ff_dim": False,
        "num_key_value_heads": max(kv_heads),
        "layer_types": kinds,
        "conv_L_cache": stored("shortconv.l_cache"),
        "rope_parameters": rope_of(stored, stored.head),
    }


def lfm2_moe(stored: Stored) -> Values:
    """LFM 2 with experts."""
    return {
        **lfm2(stored),
        **expert_counts(stored, "num_experts", "moe_intermediate_size"),
        "num_dense_layers": stored("leading_dense_block_count"),
        "use_expert_bias": stored.has("exp_probs_b.bias"),
        "norm_topk_prob": True,
    }


def falcon_h1(stored: Stored) -> Values:
    """Falcon-H1, whose constant factors are in the weights."""
    heads, inner = stored("ssm.time_step_rank"), stored("ssm.inner_size")
    return {
        **common_values(stored),
        **biases(stored, mlp_bias="ffn_gate", mamba_conv_bias="ssm_conv1d"),
        "mamba_d_conv": stored("ssm.conv_kernel"),
        "mamba_d_state": stored("ssm.state_size"),
        "mamba_n_groups": stored("ssm.group_count"),
        "mamba_n_heads": heads,
        "mamba_d_ssm": inner,
        "mamba_d_head": inner // heads,
        "mamba_rms_norm": stored.has("ssm_norm.weight"),
        "mamba_norm_before_gate": False,
    }
