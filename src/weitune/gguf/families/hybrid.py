"""Families with recurrent layers beside attention: gated delta rule, state space, short convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weitune.gguf.families.dense import ATTENTION, FEED_FORWARD, TOP, plus_one
from weitune.gguf.families.experts import EXPERTS, SHARED_EXPERT
from weitune.gguf.families.family import Family, Operation, Part, Parts, Pieces
from weitune.gguf.families.fields import SIGMOID, common_fields, expert_fields, head_size, per_layer, require, rope_of
from weitune.gguf.families.operations import decays, halves, kernels, swapped
from weitune.gguf.metadata import Field, number

_DELTA_RULE: Parts = {
    **plus_one({**ATTENTION, "post_attention_layernorm": "post_attention_norm"}),
    "linear_attn.conv1d": kernels("ssm_conv1d"),
    "linear_attn.A_log": decays("ssm_a"),
    "linear_attn.dt_bias": Part("ssm_dt.bias"),
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
}
_SECTIONS = (11, 11, 10, 0)
"""How Qwen3.5 divides rotary frequencies among time, height and width. The three are equal in text."""


def qwen3_next(config: Any) -> Family:
    """Qwen3-Next."""
    require(config.norm_topk_prob, "qwen3next", "norm_topk_prob False")
    keys = config.linear_num_key_heads
    key, value = config.linear_key_head_dim, config.linear_value_head_dim * (config.linear_num_value_heads // keys)

    def rows(*which: int) -> Operation:
        def taken(tensor: Tensor) -> Tensor:  # the rows of each key head are q, k, v and z
            parts = tensor.unflatten(0, (keys, -1)).split((key, key, value, value), 1)
            return torch.cat([parts[index].flatten(0, 1) for index in which])

        return taken

    def together(mixed: Tensor, gate: Tensor) -> Tensor:
        queries, keys_, values = mixed.split((keys * key, keys * key, keys * value))
        parts = [part.unflatten(0, (keys, -1)) for part in (queries, keys_, values, gate)]
        return torch.cat(parts, 1).flatten(0, 1)

    layer = {
        **_DELTA_RULE,
        **EXPERTS,
        **SHARED_EXPERT,
        "linear_attn.in_proj_qkvz": Pieces((Part("attn_qkv", rows(0, 1, 2)), Part("attn_gate", rows(3))), together),
        "linear_attn.in_proj_ba": "ssm_ba",
    }
    return Family("qwen3next", layer, plus_one(TOP), {**_delta_rule_fields(config, "qwen3next"), **_experts(config)})


def qwen3_5(config: Any) -> Family:
    """Qwen 3.5, without experts."""
    layer = {**_DELTA_RULE, **FEED_FORWARD, **_tiled(config)}
    return Family("qwen35", layer, plus_one(TOP), {**_delta_rule_fields(config, "qwen35"), **_sections(config)})


def qwen3_5_moe(config: Any) -> Family:
    """Qwen 3.5 with experts."""
    layer = {**_DELTA_RULE, **EXPERTS, **SHARED_EXPERT, **_tiled(config)}
    fields = {**_delta_rule_fields(config, "qwen35moe"), **_sections(config), **_experts(config)}
    return Family("qwen35moe", layer, plus_one(TOP), fields)


def _tiled(config: Any) -> Parts:
    """Return the delta rule's parts of Qwen3.5: llama.cpp puts the first value heads of all key heads first.

    transformers   k0v0 k0v1 k1v0 k1v1        llama.cpp   k0v0 k1v0 k0v1 k1v1
    """
    keys, size = config.linear_num_key_heads, config.linear_value_head_dim
    before = 2 * config.linear_key_head_dim * keys

    def values(rows: int) -> Operation:
        return lambda tensor: swapped(tensor.unflatten(0, (-1, rows)), 1, keys).flatten(0, 1)

    def last_values(tensor: Tensor) -> Tensor:  # q and k, and then the values
        return torch.cat([tensor[:before], values(size)(tensor[before:])])

    return {
        "linear_attn.conv1d": kernels("ssm_conv1d", last_values),
        "linear_attn.A_log": decays("ssm_a", values(1)),
        "linear_attn.dt_bias": Part("ssm_dt.bias", values(1)),
        "linear_attn.in_proj_qkv": Part("attn_qkv", last_values),
        "linear_attn.in_proj_z": Part("attn_gate", values(size)),
        "linear_attn.in_proj_b": Part("ssm_beta", values(1)),
        "linear_attn.in_proj_a": Part("ssm_alpha", values(1)),
        "linear_attn.out_proj": Part("ssm_out", columns=values(size)),
    }


def _delta_rule_fields(config: Any, family: str) -> dict[str, Field]:
    kinds = list(config.layer_types)
    require("full_attention" in kinds, family, f"layer_types {kinds}")
    interval = kinds.index("full_attention") + 1
    usual = ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(len(kinds))]
    require(kinds == usual, family, f"layer_types {kinds}")
    share = rope_of(config, "full_attention").get("partial_rotary_factor", 0.25)
    return {
        **common_fields(config),
        "rope.dimension_count": number(int(head_size(config) * share)),
        "ssm.conv_kernel": number(config.linear_conv_kernel_dim),
        "ssm.state_size": number(config.linear_key_head_dim),
        "ssm.group_count": number(config.linear_num_key_heads),
        "ssm.time_step_rank": number(config.linear_num_value_heads),
        "ssm.inner_size": number(config.linear_value_head_dim * config.linear_num_value_heads),
        "full_attention_interval": number(interval),
    }


def _experts(config: Any) -> dict[str, Field]:
    return {
        **expert_fields(config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size),
        "expert_shared_feed_forward_length": number(config.shared_expert_intermediate_size),
    }


def _sections(config: Any) -> dict[str, Field]:
    sections = [*(config.rope_parameters.get("mrope_section") or _SECTIONS), 0][:4]
    return {"rope.dimension_sections": per_layer(sections)}


_SHORT_CONVOLUTION: Parts = {
    "operator_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "conv.conv": kernels("shortconv.conv"),
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
}
_LFM2_TOP: Parts = {**TOP, "model.embedding_norm": "token_embd_norm"}


def lfm2(config: Any) -> Family:
    """LFM 2."""
    return Family("lfm2", _SHORT_CONVOLUTION, _LFM2_TOP, _short_convolution_fields(config, "lfm2"))


def lfm2_moe(config: Any) -> Family:
    """LFM 2 with experts."""
    require(config.norm_topk_prob, "lfm2moe", "norm_topk_prob False")
    require(config.routed_scaling_factor == 1, "lfm2moe", f"routed_scaling_factor {config.routed_scaling_factor}")
    layer = {
        **_SHORT_CONVOLUTION,
        "feed_forward.gate": "ffn_gate_inp",
        "feed_forward.expert_bias": Part("exp_probs_b.bias"),
        "feed_forward.experts.gate_up_proj": halves("ffn_gate_exps.weight", "ffn_up_exps.weight"),
        "feed_forward.experts.down_proj": Part("ffn_down_exps.weight"),
    }
    fields = {
        **_short_convolution_fields(config, "lfm2moe"),
        **expert_fields(config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size),
        "leading_dense_block_count": number(config.num_dense_layers),
        "expert_gating_func": number(SIGMOID),
    }
    return Family("lfm2moe", layer, _LFM2_TOP, fields)


def _short_convolution_fields(config: Any, family: str) -> dict[str, Field]:
    require(not config.conv_bias, family, "conv_bias True")
    width = config.intermediate_size
    if getattr(config, "block_auto_adjust_ff_dim", False):
        several = config.block_multiple_of
        width = -(-int(config.block_ffn_dim_multiplier * int(2 * width / 3)) // several) * several
    heads = [config.num_key_value_heads * (kind == "full_attention") for kind in config.layer_types]
    return {
        **common_fields(config),
        "feed_forward_length": number(width),
        "attention.head_count_kv": per_layer(heads),
        "shortconv.l_cache": number(config.conv_L_cache),
    }
