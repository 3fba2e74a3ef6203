"""The configuration of a GGUF file, by the name of its architecture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from weitune.errors import ModelError
from weitune.gguf.configuration import dense, experts, gemma4, hybrid
from weitune.gguf.configuration.stored import Stored, Values, common_values
from weitune.gguf.families.family import Family
from weitune.gguf.header import GgufHeader

_Reading = Callable[[Stored], Values]
_KINDS: Mapping[str, tuple[str, _Reading]] = {
    "deepseek2": ("deepseek_v3", experts.deepseek),
    "ernie4_5": ("ernie4_5", dense.ernie),
    "exaone4": ("exaone4", dense.without_window),
    "falcon-h1": ("falcon_h1", hybrid.falcon_h1),
    "gemma": ("gemma", common_values),
    "gemma2": ("gemma2", dense.gemma2),
    "gemma3": ("gemma3_text", dense.gemma3),
    "gemma4": ("gemma4_text", gemma4.gemma4),
    "glm4": ("glm4", dense.plain),
    "glm4moe": ("glm4_moe", experts.glm4_moe),
    "gpt-oss": ("gpt_oss", experts.gpt_oss),
    "granite": ("granite", dense.granite),
    "granitemoe": ("granitemoe", experts.granite_moe),
    "hunyuan-dense": ("hunyuan_v1_dense", dense.plain),
    "lfm2": ("lfm2", hybrid.lfm2),
    "lfm2moe": ("lfm2_moe", hybrid.lfm2_moe),
    "llama": ("mixtral", experts.mixtral),
    "minimax-m2": ("minimax_m2", experts.minimax),
    "olmo2": ("olmo2", dense.olmo2),
    "olmoe": ("olmoe", experts.olmoe),
    "phi3": ("phi3", dense.phi3),
    "qwen2moe": ("qwen2_moe", experts.qwen2_moe),
    "qwen35": ("qwen3_5_text", hybrid.qwen3_5),
    "qwen35moe": ("qwen3_5_moe_text", hybrid.qwen3_5_moe),
    "qwen3moe": ("qwen3_moe", experts.qwen3_moe),
    "qwen3next": ("qwen3_next", hybrid.qwen3_next),
    "seed_oss": ("seed_oss", dense.seed_oss),
    "smollm3": ("smollm3", dense.plain),
}
"""Model type in transformers. Llama with experts is Mixtral."""
_SAYS_NOTHING = ("rope.scaling.", "rope.scale_linear", "nextn_predict_layers", "use_parallel_residual", "pooling_type")
"""Keys, or what they begin with, that are read elsewhere or change nothing."""
_NOT_READ = {
    "gemma3": ("vision.", "mm."),  # of the tower, beside which weitune trains the text model
    "phi3": ("attention.sliding_window",),  # llama.cpp attends to everything, whatever the file says
    "granite": ("ssm.", "expert_shared_feed_forward_length"),  # of Granite 4's dense models, which have neither
}
"""The same for an architecture; of parts that no layer has."""
_PARTS = {"ssm.": "ssm_", "expert_shared_feed_forward_length": "_shexp"}
"""By a key, what is in the names of the tensors that it is about."""


def is_known(header: GgufHeader) -> bool:
    """Return whether :func:`configuration` knows the architecture of a file."""
    name = header.architecture
    return name in _KINDS and (name != "llama" or bool(header.get(f"{name}.expert_count")))


def configuration(header: GgufHeader) -> tuple[str, Values]:
    """Return the model type in transformers of a file, and the arguments of its configuration.

    Raises ModelError if the file lacks a value, or has one that transformers does not compute.
    """
    stored = Stored(header)
    kind, read = _KINDS[header.architecture]
    if kind == "olmo2" and stored.optional("attention.sliding_window"):
        kind = "olmo3"
    return kind, read(stored)


def require_same(header: GgufHeader, family: Family) -> None:
    """Raise ModelError unless ``family``, that of the configuration read from a file, says what the file says.

    A key that the family does not have is refused too: nobody knows what it changes.
    """
    before, expected = f"{header.architecture}.", family.metadata()
    says_nothing = (*_SAYS_NOTHING, *_not_read(header))
    for key in (key for key in header.metadata if key.startswith(before)):
        if key.removeprefix(before).startswith(says_nothing):
            continue
        found, wanted = header.get(key), expected[key].value if key in expected else None
        if key.endswith(".sliding_window_pattern") and not isinstance(found, list):
            continue  # a period
        if not _equal(found, _shortened(header, key, wanted)):
            raise ModelError("gguf.configuration.says_otherwise", key=key, found=found, expected=wanted)
    for name, tensor in family.computed.items():
        stored = header.tensors.get(name)
        if stored is not None and not torch.allclose(stored.read(), tensor, rtol=1e-4):
            raise ModelError("gguf.configuration.other_tensor", tensor=name)


def _not_read(header: GgufHeader) -> list[str]:
    keys = _NOT_READ.get(header.architecture, ())
    return [key for key in keys if key not in _PARTS or not any(_PARTS[key] in name for name in header.tensors)]


def _shortened(header: GgufHeader, key: str, value: Any) -> Any:
    """Return ``value``; where a file counts layers that predict several tokens, with these."""
    more = header.get(f"{header.architecture}.nextn_predict_layers", 0)
    return value + more if key.endswith(".block_count") and value is not None else value


def _equal(found: Any, wanted: Any) -> bool:
    if wanted is None:
        return found in (0, 1, False, None)  # what a key that is not there means
    if isinstance(found, list) or isinstance(wanted, list):
        one = found if isinstance(found, list) else [found] * len(wanted)
        other = wanted if isinstance(wanted, list) else [wanted] * len(one)
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(found, float) or isinstance(wanted, float):
        return math.isclose(float(found), float(wanted), rel_tol=1e-5)
    return bool(found == wanted)
