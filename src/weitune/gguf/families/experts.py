"""Families with experts. Their matrices are stacked in llama.cpp as in transformers; gate and up are apart there."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from weitune.gguf.families.dense import ATTENTION, LAYER, NORM_BETWEEN, TOP, granite_fields, rotated
from weitune.gguf.families.family import Family, Part, Parts, Pieces
from weitune.gguf.families.fields import (
    SIGMOID,
    attention_factor,
    common_fields,
    expert_fields,
    periodic_window,
    require,
    rope_factors,
    without_window,
)
from weitune.gguf.families.operations import halves
from weitune.gguf.metadata import Field, boolean, number, real

EXPERTS: Parts = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_up_proj": halves("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    "mlp.experts.down_proj": Part("ffn_down_exps.weight"),
}
SHARED_EXPERT: Parts = {
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}


_ROUTED: Parts = {
    "mlp.gate.e_score_correction_bias": Part("exp_probs_b.bias"),
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
"""What families with DeepSeek's routing have beside their experts."""


def _routed_fields(config: Any) -> dict[str, Field]:
    """Return the metadata of DeepSeek's routing."""
    return {
        **expert_fields(config.n_routed_experts, config.num_experts_per_tok, config.moe_intermediate_size),
        "leading_dense_block_count": number(config.first_k_dense_replace),
        "expert_shared_count": number(config.n_shared_experts),
        "expert_weights_scale": real(config.routed_scaling_factor),
        "expert_weights_norm": boolean(config.norm_topk_prob),
        "expert_gating_func": number(SIGMOID),
        "expert_group_count": number(config.n_group),
        "expert_group_used_count": number(config.topk_group),
    }


def qwen2_moe(config: Any) -> Family:
    """Qwen 1.5 and 2 with experts."""
    without_window(config, "qwen2moe")
    require(not config.norm_topk_prob, "qwen2moe", "norm_topk_prob True")
    fields = {
        **common_fields(config),
        **expert_fields(config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size),
        "expert_shared_feed_forward_length": number(config.shared_expert_intermediate_size),
    }
    return Family("qwen2moe", {**ATTENTION, **NORM_BETWEEN, **EXPERTS, **SHARED_EXPERT}, TOP, fields)


def qwen3_moe(config: Any) -> Family:
    """Qwen 3 with experts."""
    without_window(config, "qwen3moe")
    require(config.norm_topk_prob, "qwen3moe", "norm_topk_prob False")
    experts = expert_fields(config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size)
    layer = {**ATTENTION, **NORM_BETWEEN, **EXPERTS}
    return Family("qwen3moe", layer, TOP, {**common_fields(config), **experts})


def olmoe(config: Any) -> Family:
    """OLMoE."""
    require(not config.norm_topk_prob, "olmoe", "norm_topk_prob True")
    require(config.clip_qkv is None, "olmoe", f"clip_qkv {config.clip_qkv}")
    require(not config.attention_bias, "olmoe", "attention_bias True")
    kv_heads = config.num_key_value_heads
    require(kv_heads == config.num_attention_heads, "olmoe", f"num_key_value_heads {kv_heads}")
    experts = expert_fields(config.num_experts, config.num_experts_per_tok, config.intermediate_size)
    layer = {**ATTENTION, **NORM_BETWEEN, **EXPERTS}
    return Family("olmoe", layer, TOP, {**common_fields(config), **experts})


def mixtral(config: Any) -> Family:
    """Mixtral."""
    without_window(config, "llama")
    experts = expert_fields(config.num_local_experts, config.num_experts_per_tok, config.intermediate_size)
    layer = {**ATTENTION, **NORM_BETWEEN, **EXPERTS, **rotated(config)}
    return Family("llama", layer, TOP, {**common_fields(config, "llama3"), **experts}, rope_factors(config))


def granite_moe(config: Any) -> Family:
    """Granite 3 with experts."""
    experts = expert_fields(config.num_local_experts, config.num_experts_per_tok, config.intermediate_size)
    layer = {
        **ATTENTION,
        **NORM_BETWEEN,
        **rotated(config),
        "block_sparse_moe.router": "ffn_gate_inp",
        "block_sparse_moe.experts.gate_up_proj": halves("ffn_gate_exps.weight", "ffn_up_exps.weight"),
        "block_sparse_moe.experts.down_proj": Part("ffn_down_exps.weight"),
    }
    return Family("granitemoe", layer, TOP, {**granite_fields(config), **experts})


def _turned(matrices: Tensor) -> Tensor:
    return matrices.transpose(1, 2)


def gpt_oss(config: Any) -> Family:
    """gpt-oss: matrices of experts are (E, in, out) in transformers, the columns of gate and up in turn."""
    experts = expert_fields(config.num_local_experts, config.num_experts_per_tok, config.intermediate_size)
    layer: Parts = {
        **ATTENTION,
        "post_attention_layernorm": "post_attention_norm",
        "self_attn.sinks": Part("attn_sinks.weight"),
        "mlp.router": "ffn_gate_inp",
        "mlp.experts.gate_up_proj": Pieces(
            (
                Part("ffn_gate_exps.weight", values=lambda tensor: tensor[..., ::2].transpose(1, 2)),
                Part("ffn_up_exps.weight", values=lambda tensor: tensor[..., 1::2].transpose(1, 2)),
            ),
            lambda *halves: torch.stack(halves, -1).transpose(1, 2).flatten(2),
        ),
        "mlp.experts.gate_up_proj_bias": Pieces(
            (
                Part("ffn_gate_exps.bias", values=lambda tensor: tensor[:, ::2]),
                Part("ffn_up_exps.bias", values=lambda tensor: tensor[:, 1::2]),
            ),
            lambda *halves: torch.stack(halves, -1).flatten(1),
        ),
        "mlp.experts.down_proj": Part("ffn_down_exps.weight", values=_turned, undo=_turned),
        "mlp.experts.down_proj_bias": Part("ffn_down_exps.bias"),
    }
    fields = {**common_fields(config), **experts, **periodic_window(config, "gpt-oss", 2)}
    return Family("gpt-oss", layer, TOP, fields)


def minimax(config: Any) -> Family:
    """MiniMax M2."""
    experts = expert_fields(config.num_local_experts, config.num_experts_per_tok, config.intermediate_size)
    layer = {**ATTENTION, **NORM_BETWEEN, **EXPERTS, "mlp.e_score_correction_bias": Part("exp_probs_b.bias")}
    fields = {**common_fields(config), **experts, "expert_gating_func": number(SIGMOID)}
    return Family("minimax-m2", layer, TOP, fields)


def glm4_moe(config: Any) -> Family:
    """GLM-4.5 and later, with experts."""
    layer = {**LAYER, **EXPERTS, **_ROUTED, "post_attention_layernorm": "post_attention_norm"}
    return Family("glm4moe", layer, TOP, {**common_fields(config), **_routed_fields(config)})


_WITHOUT_QUERY_RANK = (26, 27)
"""Numbers of layers by which llama.cpp tells that queries are not compressed."""


def deepseek(config: Any) -> Family:
    """DeepSeek V3 and R1. llama.cpp multiplies queries by the matrix that would expand the compressed keys."""
    layers = config.num_hidden_layers
    usual_queries = config.q_lora_rank is not None or layers in _WITHOUT_QUERY_RANK
    require(usual_queries, "deepseek2", f"q_lora_rank null with {layers} layers")
    require(getattr(config, "rope_interleave", True), "deepseek2", "rope_interleave false")
    latent, turned, nope = config.kv_lora_rank, config.qk_rope_head_dim, config.qk_nope_head_dim
    value = config.v_head_dim

    def by_head(tensor: Tensor) -> Tensor:  # (H (nope + value), latent) -> (H, nope + value, latent)
        return tensor.reshape(-1, nope + value, tensor.shape[-1])

    layer: Parts = {
        **LAYER,
        **EXPERTS,
        **_ROUTED,
        "self_attn.q_a_proj": "attn_q_a",
        "self_attn.q_a_layernorm": "attn_q_a_norm",
        "self_attn.q_b_proj": "attn_q_b",
        "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
        "self_attn.kv_a_layernorm": "attn_kv_a_norm",
        "self_attn.kv_b_proj": Pieces(
            (
                Part(
                    "attn_k_b",
                    values=lambda tensor: by_head(tensor)[:, :nope].transpose(1, 2),
                    columns_are_inputs=False,
                ),
                Part("attn_v_b", values=lambda tensor: by_head(tensor)[:, nope:]),
            ),
            lambda keys, values: torch.cat([keys.transpose(1, 2), values], 1).flatten(0, 1),
        ),
    }
    fields = {
        **common_fields(config),
        **_routed_fields(config),
        "attention.head_count_kv": number(1),
        **({} if config.q_lora_rank is None else {"attention.q_lora_rank": number(config.q_lora_rank)}),
        "attention.kv_lora_rank": number(latent),
        "attention.key_length": number(latent + turned),
        "attention.value_length": number(latent),
        "attention.key_length_mla": number(nope + turned),
        "attention.value_length_mla": number(value),
        "rope.dimension_count": number(turned),
    }
    mscale = config.rope_parameters.get("mscale_all_dim")
    if mscale:
        fields["rope.scaling.yarn_log_multiplier"] = real(0.1 * mscale)
    if config.rope_parameters.get("rope_type") == "yarn":
        factor = attention_factor(config.rope_parameters)
        usual = math.isclose(factor, 1) and mscale
        require(bool(usual), "deepseek2", f"YaRN with attention factor {factor:.4g} and mscale_all_dim {mscale}")
        fields.pop("rope.scaling.attn_factor", None)  # llama.cpp derives it from the multiplier
    return Family("deepseek2", layer, TOP, fields)
