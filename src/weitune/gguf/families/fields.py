"""The shape of a model as GGUF metadata, from its transformers configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gguf import GGUFValueType
from weitune.errors import ModelError
from weitune.gguf.metadata import Field, array, number, real, text

SIGMOID = 2
"""llama.cpp's number of the gating function that is a sigmoid for every expert."""


def require(true: bool, family: str, what: str) -> None:
    """Raise ModelError unless ``true``: llama.cpp knows one way to compute ``family``, and ``what`` is another."""
    if not true:
        raise ModelError("gguf.families.other_than_llama_cpp", family=family, what=what)


def head_size(config: Any) -> int:
    """Return D, the size of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def common_fields(config: Any, *in_tensors: str) -> dict[str, Field]:
    """Return the hyperparameters that all families have.

    ``in_tensors`` are the scalings of rotary positions that the family writes as tensors of divisors. Raises ModelError
    if GGUF cannot express the model's.
    """
    head = head_size(config)
    rope = rope_of(config, "full_attention")
    fields = {
        "context_length": number(config.max_position_embeddings),
        "embedding_length": number(config.hidden_size),
        "block_count": number(config.num_hidden_layers),
        "feed_forward_length": number(getattr(config, "intermediate_size", 0)),
        "attention.head_count": number(config.num_attention_heads),
        "attention.head_count_kv": number(config.num_key_value_heads),
        "attention.key_length": number(head),
        "attention.value_length": number(head),
        "attention.layer_norm_rms_epsilon": real(_epsilon(config)),
        "rope.dimension_count": number(int(head * rope.get("partial_rotary_factor", 1.0))),
        "vocab_size": number(config.vocab_size),
        **_rope(rope, in_tensors),
    }
    sliding = rope_of(config, "sliding_attention")
    if sliding is not rope:
        if sliding.get("rope_type", "default") != "default":
            raise ModelError("gguf.families.unknown_rope", rope=dict(sliding))
        fields["rope.freq_base_swa"] = real(sliding["rope_theta"])
    return fields


def _epsilon(config: Any) -> float:
    return float(config.rms_norm_eps if hasattr(config, "rms_norm_eps") else config.norm_eps)


def rope_of(config: Any, kind: str) -> Mapping[str, Any]:
    """Return the rotary positions of the layers of one kind; most models have the same in all."""
    rope: Mapping[str, Any] = config.rope_parameters
    return rope[kind] if isinstance(rope.get(kind), Mapping) else rope


def _rope(rope: Mapping[str, Any], in_tensors: Sequence[str]) -> dict[str, Field]:
    fields = {"rope.freq_base": real(rope["rope_theta"])}
    kind = rope.get("rope_type", "default")
    if kind in {"default", *in_tensors}:
        return fields
    if kind == "linear":
        return {**fields, "rope.scaling.type": text("linear"), "rope.scaling.factor": real(rope["factor"])}
    if kind == "yarn" and "original_max_position_embeddings" in rope:
        return {**fields, **_yarn(rope)}
    raise ModelError("gguf.families.unknown_rope", rope=dict(rope))


def rounds_yarn(config: Any) -> bool:
    """Return whether llama.cpp, which rounds the bounds of YaRN's ramp, computes ``config`` otherwise (gpt-oss)."""
    rope = rope_of(config, "full_attention")
    return rope.get("rope_type") == "yarn" and not rope.get("truncate", True)


def _yarn(rope: Mapping[str, Any]) -> dict[str, Field]:
    """Return the metadata of YaRN. llama.cpp multiplies its usual attention factor by the file's ``attn_factor``."""
    named = ((key, rope.get(key)) for key in ("beta_fast", "beta_slow"))
    fields = {f"rope.scaling.yarn_{key}": real(beta) for key, beta in named if beta is not None}
    beyond = attention_factor(rope) / usual_attention_factor(rope["factor"])
    if not math.isclose(beyond, 1):
        fields["rope.scaling.attn_factor"] = real(beyond)
    return {
        "rope.scaling.type": text("yarn"),
        "rope.scaling.factor": real(rope["factor"]),
        "rope.scaling.original_context_length": number(rope["original_max_position_embeddings"]),
        **fields,
    }


def attention_factor(rope: Mapping[str, Any]) -> float:
    """Return what transformers multiplies cosines and sines by, of a model scaled with YaRN."""
    given, one, other = (rope.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return float(given)
    factor = rope["factor"]
    if one and other:
        return usual_attention_factor(factor, one) / usual_attention_factor(factor, other)
    return usual_attention_factor(factor)


def usual_attention_factor(factor: float, scale: float = 1.0) -> float:
    """Return YaRN's attention factor of a context that is ``factor`` times as long as the original one."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def long_attention_factor(config: Any) -> float:
    """Return what Phi multiplies cosines and sines by where LongRoPE (arXiv 2402.13753) makes its context longer."""
    rope, original = rope_of(config, "full_attention"), config.original_max_position_embeddings
    if (given := rope.get("attention_factor")) is not None:
        return float(given)
    longer = rope.get("factor") or config.max_position_embeddings / original
    return math.sqrt(1 + math.log(longer) / math.log(original)) if longer > 1 else 1.0


def llama3_divisors(rope: Mapping[str, Any], head: int) -> Tensor:
    """Return the divisors of the rotary frequencies, shape (D/2,), of heads of size D scaled as Llama 3.1.

    Wavelengths beyond the original context divided by ``low_freq_factor`` are stretched by ``factor``, those below it
    divided by ``high_freq_factor`` are left alone, and in between the inverse factor is interpolated.
    """
    turns_in_context = rope["original_max_position_embeddings"] * turns_per_token(rope["rope_theta"], head)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    untouched = ((turns_in_context - low) / (high - low)).clamp(0, 1)
    divisors: Tensor = 1 / (untouched + (1 - untouched) / rope["factor"])
    return divisors.float()


def turns_per_token(theta: float, head: int) -> Tensor:
    """Return the rotary frequencies, shape (D/2,), in turns."""
    return float(theta) ** -(torch.arange(0, head, 2, dtype=torch.float64) / head) / (2 * math.pi)


def rope_factors(config: Any) -> dict[str, Tensor]:
    """Return the divisors of the rotary frequencies of a model scaled as Llama 3.1; nothing for others."""
    rope = rope_of(config, "full_attention")
    if rope.get("rope_type") != "llama3":
        return {}
    return {"rope_freqs.weight": llama3_divisors(rope, head_size(config))}


def without_window(config: Any, family: str) -> None:
    """Raise ModelError if the model attends within a window that is shorter than its context."""
    window = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)
    if window and window < config.max_position_embeddings:
        raise ModelError("gguf.families.sliding_window", window_tokens=window, architecture=family)


def window_layers(config: Any) -> list[bool]:
    """Return for every layer whether it attends within the window."""
    return [kind == "sliding_attention" for kind in config.layer_types]


def window_fields(config: Any) -> dict[str, Field]:
    """Return the window, and the layers that have it."""
    return {
        "attention.sliding_window": number(config.sliding_window),
        "attention.sliding_window_pattern": array(window_layers(config), GGUFValueType.BOOL),
    }


def periodic_window(config: Any, family: str, period: int) -> dict[str, Field]:
    """Return the window of a family in which every layer has it but each ``period``-th.

    Raises ModelError if the model's layers differ.
    """
    usual = [(layer + 1) % period != 0 for layer in range(config.num_hidden_layers)]
    require(window_layers(config) == usual, family, f"layer_types {config.layer_types}")
    return {"attention.sliding_window": number(config.sliding_window)}


def expert_fields(count: int, used: int, hidden: int) -> dict[str, Field]:
    """Return the number of experts of a layer, of those that a token goes to, and the hidden size of each."""
    return {
        "expert_count": number(count),
        "expert_used_count": number(used),
        "expert_feed_forward_length": number(hidden),
    }


def per_layer(values: Sequence[int]) -> Field:
    """Return whole numbers, one for each layer."""
    return array(list(values), GGUFValueType.UINT32)
