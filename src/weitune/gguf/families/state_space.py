"""Families whose layers have a state space of Mamba 2 (arXiv 2405.21060) beside or instead of attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from weitune.gguf.families.dense import ATTENTION, TOP
from weitune.gguf.families.family import Family, Part, Parts
from weitune.gguf.families.fields import common_fields, require
from weitune.gguf.families.operations import kernels, scaled
from weitune.gguf.metadata import Field, number


def falcon_h1(config: Any) -> Family:
    """Falcon-H1. Its constant factors become part of the weights; that of the logits is in the last norm."""
    _check_falcon_h1(config)
    gate, down = config.mlp_multipliers
    attention_in = config.attention_in_multiplier
    layer: Parts = {
        **ATTENTION,
        **_mamba(config),
        "self_attn.q_proj": Part("attn_q", scaled(attention_in)),
        "self_attn.k_proj": Part("attn_k", scaled(attention_in * config.key_multiplier)),
        "self_attn.v_proj": Part("attn_v", scaled(attention_in)),
        "self_attn.o_proj": Part("attn_output", scaled(config.attention_out_multiplier)),
        "mamba.in_proj": Part("ssm_in", scaled(_input_factors(config))),
        "mamba.out_proj": Part("ssm_out", scaled(config.ssm_out_multiplier)),
        "pre_ff_layernorm.weight": Part("ffn_norm"),
        "feed_forward.gate_proj": Part("ffn_gate", scaled(gate)),
        "feed_forward.up_proj": "ffn_up",
        "feed_forward.down_proj": Part("ffn_down", scaled(down)),
    }
    embedding = config.embedding_multiplier
    logits = config.lm_head_multiplier / (embedding if config.tie_word_embeddings else 1.0)
    top: Parts = {
        **TOP,
        "model.embed_tokens": Part("token_embd", scaled(embedding)),
        "model.final_layernorm": Part("output_norm", scaled(logits)),
    }
    return Family("falcon-h1", layer, top, {**common_fields(config), **_mamba_fields(config)})


def _check_falcon_h1(config: Any) -> None:
    for bias in ("attention_bias", "mamba_proj_bias", "projectors_bias"):
        require(not getattr(config, bias), "falcon-h1", f"{bias} True")
    norm_first = config.mamba_rms_norm and config.mamba_norm_before_gate
    require(not norm_first, "falcon-h1", "mamba_norm_before_gate True")
    limit = tuple(config.time_step_limit or ())
    require(limit == (0.0, math.inf), "falcon-h1", f"time_step_limit {limit}")


def _input_factors(config: Any) -> Tensor:
    """Return the factor of every row of ``in_proj``: those of gate, values, B, C and step sizes follow each other."""
    values, states = _inner_size(config), config.mamba_n_groups * config.mamba_d_state
    rows = torch.tensor([values, values, states, states, config.mamba_n_heads])
    factors: Tensor = torch.tensor(config.ssm_multipliers) * config.ssm_in_multiplier
    return factors.repeat_interleave(rows)


def _mamba(config: Any) -> Parts:
    """Return the parts of a layer's state space, named as in transformers."""
    return {
        "mamba.in_proj": "ssm_in",
        "mamba.conv1d.weight": kernels("ssm_conv1d.weight"),
        "mamba.conv1d.bias": Part("ssm_conv1d.bias"),
        "mamba.dt_bias": Part("ssm_dt.bias"),
        "mamba.A_log": Part("ssm_a", values=lambda a: -torch.exp(a).unsqueeze(1), undo=lambda a: torch.log(-a[:, 0])),
        "mamba.D": Part("ssm_d", values=lambda tensor: tensor.unsqueeze(1), undo=torch.flatten),
        "mamba.norm": Part(
            "ssm_norm", values=lambda tensor: tensor.reshape(config.mamba_n_groups, -1), undo=torch.flatten
        ),
        "mamba.out_proj": "ssm_out",
    }


def _mamba_fields(config: Any) -> dict[str, Field]:
    return {
        "ssm.conv_kernel": number(config.mamba_d_conv),
        "ssm.state_size": number(config.mamba_d_state),
        "ssm.group_count": number(config.mamba_n_groups),
        "ssm.time_step_rank": number(config.mamba_n_heads),
        "ssm.inner_size": number(_inner_size(config)),
    }


def _inner_size(config: Any) -> int:
    return int(config.mamba_n_heads * config.mamba_d_head)
