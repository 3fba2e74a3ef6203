"""Gemma 4: layers of two kinds with heads of different size, some without keys and values of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weitune.gguf.families.dense import FOUR_NORMS, LAYER, TOP
from weitune.gguf.families.family import Family, Part, Parts
from weitune.gguf.families.fields import (
    common_fields,
    expert_fields,
    per_layer,
    require,
    rope_of,
    window_fields,
    window_layers,
)
from weitune.gguf.metadata import Field, number, real

_LAYER: Parts = {
    **LAYER,
    **FOUR_NORMS,
    "layer_scalar": Part("layer_output_scale.weight"),
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
    "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "post_feedforward_layernorm_2": "post_ffw_norm_2",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
    "router.proj": "ffn_gate_inp",
    "router.scale": Part("ffn_gate_inp.scale"),
    "router.per_expert_scale": Part("ffn_down_exps.scale"),
    "experts.gate_up_proj": Part("ffn_gate_up_exps.weight"),
    "experts.down_proj": Part("ffn_down_exps.weight"),
}
_TOP: Parts = {
    **TOP,
    "model.embed_tokens_per_layer": "per_layer_token_embd",
    "model.per_layer_model_projection.weight": Part("per_layer_model_proj.weight"),  # no adapter reaches it
    "model.per_layer_projection_norm": "per_layer_proj_norm",
}
_NEVER = 1e30
"""Divisor of a frequency that no longer turns anything."""


def gemma4(config: Any) -> Family:
    """Gemma 4, with experts or without."""
    windowed = window_layers(config)
    full, sliding = _of_kind(config, windowed, False), _of_kind(config, windowed, True)
    _check(config, windowed)
    fields = {
        **common_fields(full, "proportional"),
        **window_fields(config),
        **_per_layer_fields(config),
        "rope.dimension_count": number(full.head_dim),
        "rope.dimension_count_swa": number(sliding.head_dim),
        "attention.key_length_swa": number(sliding.head_dim),
        "attention.value_length_swa": number(sliding.head_dim),
        "attention.shared_kv_layers": number(config.num_kv_shared_layers),
        "embedding_length_per_layer_input": number(config.hidden_size_per_layer_input or 0),
    }
    if config.final_logit_softcapping:
        fields["final_logit_softcapping"] = real(config.final_logit_softcapping)
    if config.enable_moe_block:
        fields |= expert_fields(config.num_experts, config.top_k_experts, config.moe_intermediate_size)
    return Family("gemma4", _LAYER, _TOP, fields, {"rope_freqs.weight": _divisors(full)})


def _check(config: Any, windowed: list[bool]) -> None:
    """Raise ModelError if llama.cpp computes something otherwise."""
    require(not config.attention_bias, "gemma4", "attention_bias True")
    everywhere = config.use_bidirectional_attention == "all"
    require(not everywhere, "gemma4", 'use_bidirectional_attention "all"')
    own = config.num_hidden_layers - config.num_kv_shared_layers
    shared = config.num_kv_shared_layers == 0 or windowed[own - 2 : own] == [True, False]
    require(shared, "gemma4", f"num_kv_shared_layers {config.num_kv_shared_layers}")
    if config.hidden_size_per_layer_input:
        tokens = config.vocab_size_per_layer_input
        require(tokens == config.vocab_size, "gemma4", f"vocab_size_per_layer_input {tokens}")


def _of_kind(config: Any, windowed: list[bool], kind: bool) -> Any:
    """Return the configuration of the layers with a window or without, or of the last layer if there are none."""
    layers = [config.per_layer_config[i] for i, each in enumerate(windowed) if each == kind]
    sizes = {layer.head_dim for layer in layers}
    require(len(sizes) <= 1, "gemma4", f"head_dim {sorted(sizes)}")
    return layers[0] if layers else config.per_layer_config[len(windowed) - 1]


def _per_layer_fields(config: Any) -> dict[str, Field]:
    layers = [config.per_layer_config[i] for i in range(config.num_hidden_layers)]
    own = config.num_hidden_layers - config.num_kv_shared_layers
    doubled = [config.use_double_wide_mlp and i >= own for i in range(len(layers))]
    widths = [layer.intermediate_size * (1 + double) for layer, double in zip(layers, doubled, strict=True)]
    return {
        "feed_forward_length": per_layer(widths),
        "attention.head_count_kv": per_layer([layer.num_key_value_heads for layer in layers]),
    }


def _divisors(full: Any) -> Tensor:
    """Return the divisors of the rotary frequencies of layers without a window, shape (D/2,): some do not turn."""
    rope, pairs = rope_of(full, "full_attention"), full.head_dim // 2
    turned = pairs
    divisors = torch.ones(pairs)
    if rope.get("rope_type") == "proportional":
        turned = int(rope.get("partial_rotary_factor", 1.0) * full.head_dim // 2)
        divisors *= rope.get("factor", 1.0)
    divisors[turned:] = _NEVER
    return divisors
