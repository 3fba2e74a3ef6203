"""How a ``.gguf`` file scales rotary positions, as transformers' parameters.

rope.scaling.type linear    factor                                         linear
rope.scaling.type yarn      factor, original context, betas, attention     yarn
the tensor rope_freqs       divisors of the frequencies                    llama3
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from weitune.errors import ModelError
from weitune.gguf.families.fields import (
    llama3_divisors,
    long_attention_factor,
    rope_of,
    turns_per_token,
    usual_attention_factor,
)
from weitune.gguf.header import GgufHeader, StoredTensor

_DIVISORS = "rope_freqs.weight"
_LONG_ROPE = ("rope_factors_long.weight", "rope_factors_short.weight")
_LOW, _HIGH = 1.0, 4.0
"""The ``low_freq_factor`` and ``high_freq_factor`` of every published model; a file does not tell them."""
_SILENT = ("type", "factor", "original_context_length", "finetuned")
"""Keys that change nothing alone."""
_OF_YARN = (*_SILENT, "yarn_beta_fast", "yarn_beta_slow", "attn_factor", "yarn_attn_factor")


def rope_scaling(header: GgufHeader, theta: float, also: Sequence[str] = ()) -> dict[str, Any]:
    """Return the parameters that transformers has for the scaling of a file; none if it has none.

    ``theta`` is the base of the frequencies, ``also`` are keys of YaRN that the caller reads. Raises
    ModelError if transformers cannot compute what llama.cpp does.
    """
    kind, keys = _stated(header)
    scaled = {"rope_theta": theta, "rope_type": kind}
    divisors = header.tensors.get(_DIVISORS)
    if divisors is not None and _is_llama3(divisors):
        if kind is not None:
            raise unknown_scaling(header)
        return {**scaled, **_llama3(header, divisors, theta)}
    if kind is None:
        return {}
    if kind == "linear" and keys.keys() <= set(_SILENT):
        return {**scaled, "factor": keys["factor"]}
    if kind == "yarn" and keys.keys() <= {*_OF_YARN, *also} and "factor" in keys:
        return {**scaled, **_yarn(header, keys)}
    raise unknown_scaling(header)


def require_scaling(header: GgufHeader, config: Any) -> None:
    """Raise ModelError if a file scales rotary positions, and the ``config`` that transformers made of it does not."""
    kind, _ = _stated(header)
    divisors = header.tensors.get(_DIVISORS)
    scaled = kind is not None or (divisors is not None and _is_llama3(divisors))
    rope = getattr(config, "rope_parameters", None) or {}
    read = any(
        each.get("rope_type", "default") != "default" for each in (rope, *rope.values()) if isinstance(each, dict)
    )
    if not read and (scaled or any(name in header.tensors for name in _LONG_ROPE)):
        raise unknown_scaling(header)


def require_kept(header: GgufHeader, config: Any) -> None:
    """Raise ModelError unless the layers of ``config`` without a window scale positions as the file states.

    Files with tensors of LongRoPE's factors need not name it, and state what cosines and sines are multiplied by.
    """
    kind, keys = _stated(header)
    rope = rope_of(config, "full_attention")
    if _LONG_ROPE[0] in header.tensors:
        factor = keys.get("attn_factor")
        usual = factor is None or math.isclose(factor, long_attention_factor(config), rel_tol=1e-4)
        if not usual:
            raise unknown_scaling(header)
        kind, keys = "longrope", {}
    if kind is not None and (rope.get("rope_type") != kind or rope.get("factor") != keys.get("factor")):
        raise unknown_scaling(header)


def _stated(header: GgufHeader) -> tuple[str | None, dict[str, Any]]:
    """Return the kind of scaling that the metadata states, None if it changes nothing, and its keys."""
    before = f"{header.architecture}.rope.scaling."
    keys = {key.removeprefix(before): header.get(key) for key in header.metadata if key.startswith(before)}
    old = header.get(f"{header.architecture}.rope.scale_linear")
    if old is not None:
        keys.setdefault("factor", old)
    kind = keys.get("type", "linear")
    if kind == "none" or (kind == "linear" and keys.get("factor", 0) in (0, 1) and keys.get("attn_factor", 1) == 1):
        return None, keys
    return str(kind), keys


def _yarn(header: GgufHeader, keys: dict[str, Any]) -> dict[str, Any]:
    factor, own = keys["factor"], keys.get("attn_factor", 1.0)
    usual = usual_attention_factor(factor)
    if not math.isclose(keys.get("yarn_attn_factor", usual), usual, rel_tol=1e-4):  # llama.cpp computes it
        raise unknown_scaling(header)
    context = header.get(f"{header.architecture}.context_length")
    found = {
        "factor": factor,
        "original_max_position_embeddings": keys.get("original_context_length", context),
        **{key: keys[f"yarn_{key}"] for key in ("beta_fast", "beta_slow") if f"yarn_{key}" in keys},
    }
    return found if own == 1 else {**found, "attention_factor": own * usual}


def _is_llama3(divisors: StoredTensor) -> bool:
    return bool((divisors.read() != 1).any())


def _llama3(header: GgufHeader, stored: StoredTensor, theta: float) -> dict[str, Any]:
    """Return the parameters of which ``stored``, shape (D/2,), was computed, if there are such."""
    divisors = stored.read().double()
    factor, head = float(divisors.max()), 2 * len(divisors)
    untouched = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    between = (divisors > 1) & (divisors < factor)
    contexts = (_LOW + untouched * (_HIGH - _LOW)) / turns_per_token(theta, head)
    if not between.any():
        raise unknown_scaling(header)
    found = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": round(float(contexts[between].median())),
    }
    again = llama3_divisors({**found, "rope_theta": theta}, head).double()
    if not torch.allclose(again, divisors, rtol=1e-4, atol=0):
        raise unknown_scaling(header)
    return found


def unknown_scaling(header: GgufHeader) -> ModelError:
    """Return the error for a file whose scaling transformers does not compute."""
    before = f"{header.architecture}.rope.scal"
    stated = [f"{key} {header.get(key)}" for key in header.metadata if key.startswith(before)]
    tensors = [name for name in (_DIVISORS, *_LONG_ROPE) if name in header.tensors]
    return ModelError("gguf.rope.unknown_scaling", scaling=", ".join([*stated, *tensors]))
