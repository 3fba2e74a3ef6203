"""The Gemma families up to Gemma 3."""

from __future__ import annotations

from typing import Any

from weitune.gguf.families.dense import FOUR_NORMS, LAYER, TOP, plus_one
from weitune.gguf.families.family import Family
from weitune.gguf.families.fields import common_fields, head_size, periodic_window, require, window_fields
from weitune.gguf.metadata import real

GEMMA_27B = {"gemma2": 46, "gemma3": 62}
"""By its number of layers, llama.cpp knows the size that scales attention by the hidden size instead of the head's."""


def gemma(config: Any) -> Family:
    """The first Gemma."""
    return Family("gemma", plus_one(LAYER), plus_one(TOP), common_fields(config))


def gemma2(config: Any) -> Family:
    """Gemma 2, whose every other layer attends within a window."""
    _check_attention_scale(config, "gemma2")
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):  # llama.cpp takes 50 and 30 where none is given
        require(getattr(config, cap) is not None, "gemma2", f"{cap} null")
    fields = {
        **common_fields(config),
        **periodic_window(config, "gemma2", 2),
        "attn_logit_softcapping": real(config.attn_logit_softcapping),
        "final_logit_softcapping": real(config.final_logit_softcapping),
    }
    return Family("gemma2", plus_one({**LAYER, **FOUR_NORMS}), plus_one(TOP), fields)


def gemma3(config: Any) -> Family:
    """Gemma 3."""
    _check_attention_scale(config, "gemma3")
    fields = {**common_fields(config), **window_fields(config)}
    if config.final_logit_softcapping:
        fields["final_logit_softcapping"] = real(config.final_logit_softcapping)
    require(not config.attn_logit_softcapping, "gemma3", "attn_logit_softcapping")
    return Family("gemma3", plus_one({**LAYER, **FOUR_NORMS}), plus_one(TOP), fields)


def _check_attention_scale(config: Any, family: str) -> None:
    large = config.num_hidden_layers == GEMMA_27B[family]
    expected = config.hidden_size // config.num_attention_heads if large else head_size(config)
    scalar = config.query_pre_attn_scalar
    require(scalar == expected, family, f"query_pre_attn_scalar {scalar}")
