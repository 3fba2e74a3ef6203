"""The family of a model in GGUF, by the type of its text model in transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from weitune.errors import ModelError
from weitune.gguf.families import dense, experts, gemma, gemma4, hybrid, state_space
from weitune.gguf.families.family import Family

_FAMILIES: Mapping[str, Callable[[Any], Family]] = {
    "llama": dense.llama,
    "mistral": dense.llama,
    "qwen2": dense.qwen2,
    "qwen3": dense.qwen3,
    "gemma": gemma.gemma,
    "gemma2": gemma.gemma2,
    "gemma3_text": gemma.gemma3,
    "gemma4_text": gemma4.gemma4,
    "phi3": dense.phi3,
    "glm4": dense.glm4,
    "smollm3": dense.smollm3,
    "olmo2": dense.olmo2,
    "olmo3": dense.olmo2,
    "exaone4": dense.exaone4,
    "granite": dense.granite,
    "seed_oss": dense.seed_oss,
    "ernie4_5": dense.ernie,
    "hunyuan_v1_dense": dense.hunyuan,
    "qwen2_moe": experts.qwen2_moe,
    "qwen3_moe": experts.qwen3_moe,
    "mixtral": experts.mixtral,
    "olmoe": experts.olmoe,
    "granitemoe": experts.granite_moe,
    "gpt_oss": experts.gpt_oss,
    "deepseek_v3": experts.deepseek,
    "minimax_m2": experts.minimax,
    "glm4_moe": experts.glm4_moe,
    "qwen3_next": hybrid.qwen3_next,
    "qwen3_5_text": hybrid.qwen3_5,
    "qwen3_5_moe_text": hybrid.qwen3_5_moe,
    "lfm2": hybrid.lfm2,
    "lfm2_moe": hybrid.lfm2_moe,
    "falcon_h1": state_space.falcon_h1,
}


def family_of(config: Any) -> Family:
    """Return the family of a text model's configuration.

    Raises ModelError if weitune does not write it, or if llama.cpp computes something differently than this model.
    """
    make = _FAMILIES.get(config.model_type)
    if make is None:
        raise ModelError("gguf.families.unknown", family=config.model_type)
    return make(config)
