"""The families whose ``.gguf`` files weitune reads: Llama and Mistral, Qwen2, Qwen3.

    model.layers.0.self_attn.q_proj.weight  ◀─▶  blk.0.attn_q.weight

The rows of q and k of the llama family change places (:func:`weitune.gguf.families.operations.interleaved`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from weitune.errors import ModelError
from weitune.gguf.families.dense import LAYER, TOP, rotated_heads
from weitune.gguf.families.family import Family
from weitune.gguf.families.operations import swapped
from weitune.gguf.header import GgufHeader

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_FROM_LAYER = {gguf: huggingface for huggingface, gguf in LAYER.items()}
_FROM_TOP_LEVEL = {gguf: huggingface for huggingface, gguf in TOP.items()}
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family under its GGUF name, with the head counts that its row order depends on."""

    name: str
    heads: int
    kv_heads: int

    @property
    def family(self) -> Family:
        """What modules become; metadata and the tensors that nothing changes are copied from the file."""
        turned = rotated_heads(self.heads, self.kv_heads) if self.name == "llama" else {}
        return Family(self.name, {**LAYER, **turned}, TOP)

    def huggingface_name(self, tensor: str) -> str | None:
        """Return transformers' name of a GGUF tensor, or None for one that transformers computes (``rope_freqs``)."""
        stem, _, kind = tensor.rpartition(".")
        if match := _BLOCK.fullmatch(stem):
            part = _FROM_LAYER.get(match[2])
            return f"model.layers.{match[1]}.{part}.{kind}" if part else None
        return f"{_FROM_TOP_LEVEL[stem]}.{kind}" if stem in _FROM_TOP_LEVEL else None

    def to_gguf(self, name: str, tensor: Tensor) -> Tensor:
        """Return ``tensor`` (rows first) of the module or weight ``name`` with its rows in llama.cpp's order."""
        heads = self._reordered_heads(name)
        return tensor if not heads else swapped(tensor, heads, 2)

    def to_huggingface(self, name: str, tensor: Tensor) -> Tensor:
        """Return ``tensor`` (rows first) of the module or weight ``name`` with its rows in transformers' order."""
        heads = self._reordered_heads(name)
        return tensor if not heads else swapped(tensor, heads, tensor.shape[0] // heads // 2)

    def _reordered_heads(self, name: str) -> int:
        """Return the number of heads whose rows change places in ``name``."""
        if self.name != "llama":
            return 0
        return self.heads if ".q_proj" in name else self.kv_heads if ".k_proj" in name else 0


def known_architecture(header: GgufHeader) -> Architecture | None:
    """Return the architecture of a ``.gguf`` file, or None if weitune does not write it."""
    name = header.architecture
    heads = header.get(f"{name}.attention.head_count")
    kv_heads = header.get(f"{name}.attention.head_count_kv", heads)
    known = name in _ARCHITECTURES and isinstance(heads, int) and isinstance(kv_heads, int)
    return Architecture(name, heads, kv_heads) if known else None


def architecture_of_gguf(header: GgufHeader) -> Architecture:
    """Return the architecture of a ``.gguf`` file. Raises ModelError if weitune does not write it."""
    architecture = known_architecture(header)
    if architecture is None:
        raise ModelError("gguf.architecture.unknown", architecture=header.architecture)
    return architecture
