"""The shape of a model as GGUF metadata, from its transformers configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gguf import GGUFValueType
from weitune.errors import ModelError


class Field(NamedTuple):
    """One value of a GGUF file; ``element`` is the type of an array's elements."""

    value: Any
    type: GGUFValueType
    element: GGUFValueType | None = None


Metadata = Mapping[str, Field]


def number(value: int) -> Field:
    """Return an unsigned 32-bit value."""
    return Field(int(value), GGUFValueType.UINT32)


def real(value: float) -> Field:
    """Return a 32-bit floating-point value."""
    return Field(float(value), GGUFValueType.FLOAT32)


def text(value: str) -> Field:
    """Return a string."""
    return Field(value, GGUFValueType.STRING)


def boolean(value: bool) -> Field:
    """Return a boolean."""
    return Field(value, GGUFValueType.BOOL)


def array(values: list[Any], element: GGUFValueType) -> Field:
    """Return an array of ``element``."""
    return Field(values, GGUFValueType.ARRAY, element)


def shape_metadata(architecture: str, config: Any) -> dict[str, Field]:
    """Return the hyperparameters of a transformers ``config``. Raises ModelError if GGUF cannot express its RoPE."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    fields = {
        "context_length": number(config.max_position_embeddings),
        "embedding_length": number(config.hidden_size),
        "block_count": number(config.num_hidden_layers),
        "feed_forward_length": number(config.intermediate_size),
        "attention.head_count": number(config.num_attention_heads),
        "attention.head_count_kv": number(config.num_key_value_heads),
        "attention.key_length": number(head),
        "attention.value_length": number(head),
        "attention.layer_norm_rms_epsilon": real(config.rms_norm_eps),
        "rope.dimension_count": number(head),
        "vocab_size": number(config.vocab_size),
        **_rope(config.rope_parameters),
    }
    return {f"{architecture}.{key}": field for key, field in fields.items()}


def _rope(rope: Mapping[str, Any]) -> dict[str, Field]:
    fields = {"rope.freq_base": real(rope["rope_theta"])}
    kind = rope.get("rope_type", "default")
    if kind in {"default", "llama3"}:  # llama3 scaling is a tensor, see rope_factors
        return fields
    if kind == "linear":
        return {**fields, "rope.scaling.type": text("linear"), "rope.scaling.factor": real(rope["factor"])}
    if kind == "yarn" and "original_max_position_embeddings" in rope:
        return {
            **fields,
            "rope.scaling.type": text("yarn"),
            "rope.scaling.factor": real(rope["factor"]),
            "rope.scaling.original_context_length": number(rope["original_max_position_embeddings"]),
        }
    raise ModelError("gguf.metadata.unknown_rope", rope=dict(rope))


def rope_factors(config: Any) -> Tensor | None:
    """Return the divisors of the rotary frequencies, shape (D/2,), of a model scaled as Llama 3.1; None for others.

    Wavelengths beyond the original context divided by ``low_freq_factor`` are stretched by ``factor``, those below it
    divided by ``high_freq_factor`` are left alone, and in between the inverse factor is interpolated.
    """
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turns_per_token = float(rope["rope_theta"]) ** -(torch.arange(0, head, 2, dtype=torch.float64) / head)
    turns_in_context = rope["original_max_position_embeddings"] * turns_per_token / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    untouched = ((turns_in_context - low) / (high - low)).clamp(0, 1)
    divisors: Tensor = 1 / (untouched + (1 - untouched) / rope["factor"])
    return divisors.float()
