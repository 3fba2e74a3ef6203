"""A family as a ``.gguf`` file has it, in both directions.

    model.layers.0.self_attn.q_proj.weight  ◀─▶  blk.0.attn_q.weight

Llama and Mistral, Qwen2 and Qwen3 are known by a file's header; the others by their configuration in transformers,
from which their :class:`Family` is made. What a family does to the rows and columns of a matrix is undone by doing it
to their numbers once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weitune.gguf.families.dense import LAYER, TOP, rotated_heads
from weitune.gguf.families.family import Family, Operation, Part, Parts, same
from weitune.gguf.header import GgufHeader

_KNOWN = ("llama", "qwen2", "qwen3")
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_COMPUTED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that transformers computes."""


@dataclass(frozen=True)
class Architecture:
    """What the tensors of a ``.gguf`` file are in transformers."""

    family: Family

    @property
    def name(self) -> str:
        return self.family.name

    def huggingface_name(self, tensor: str) -> str | None:
        """Return transformers' name of a GGUF tensor; None if no parameter becomes that tensor and nothing else."""
        match = _BLOCK.fullmatch(tensor)
        rest, names = (match[2], self._in_layer) if match else (tensor, self._at_top)
        stem, _, kind = rest.rpartition(".")
        found = names.get(rest) or (f"{names[stem]}.{kind}" if stem in names else None)
        return found and (f"model.layers.{match[1]}.{found}" if match else found)

    def is_left_out(self, tensor: str) -> bool:
        """Return whether a GGUF tensor has weights of the model, but no name of its own in transformers."""
        return tensor not in _COMPUTED and self.huggingface_name(tensor) is None

    def to_gguf(self, name: str, tensor: Tensor) -> Tensor:
        """Return ``tensor`` (rows first), the parameter ``name`` of transformers, as llama.cpp has it."""
        return self._part(name).of(tensor)

    def importance_to_gguf(self, name: str, importance: Tensor) -> Tensor | None:
        """Return the importance of the columns of the parameter ``name``, shape (in,), in llama.cpp's order."""
        return self._part(name).of_importance(importance)

    def to_huggingface(self, name: str, tensor: Tensor) -> Tensor:
        """Return ``tensor`` (rows first) of a file as transformers has it: the parameter ``name``."""
        part = self._part(name)
        rows = _undone(part.rows, tensor)
        return rows if part.columns is same else _undone(part.columns, rows.transpose(0, 1)).transpose(0, 1)

    def _part(self, name: str) -> Part:
        [part] = self.family.parts(name) or []
        return part

    @cached_property
    def _in_layer(self) -> Mapping[str, str]:
        return _reversed(self.family.layer)

    @cached_property
    def _at_top(self) -> Mapping[str, str]:
        return _reversed(self.family.top)


def _reversed(parts: Parts) -> dict[str, str]:
    """Return the names in transformers of the parts that are alone and can be undone, by their names in GGUF."""
    named = ((name, Part(part) if isinstance(part, str) else part) for name, part in parts.items())
    return {part.name: name for name, part in named if isinstance(part, Part) and part.values is same}


def _undone(operation: Operation, tensor: Tensor) -> Tensor:
    """Return what ``operation``, which orders rows in another way or adds a number, made ``tensor`` of."""
    if operation is same:
        return tensor
    numbers = torch.arange(tensor.shape[0], dtype=torch.float64)
    moved = operation(numbers)
    added = float((moved.sum() - numbers.sum()) / len(numbers))
    order = (moved - added).round().long()
    original = torch.empty_like(tensor)
    original[order] = tensor - added if added else tensor
    return original


def known_architecture(header: GgufHeader) -> Architecture | None:
    """Return the architecture of a ``.gguf`` file; None if the header does not tell it, or if there are experts."""
    name = header.architecture
    heads = header.get(f"{name}.attention.head_count")
    kv_heads = header.get(f"{name}.attention.head_count_kv", heads)
    dense = f"{name}.expert_count" not in header.metadata
    if name not in _KNOWN or not dense or not isinstance(heads, int) or not isinstance(kv_heads, int):
        return None
    return architecture_of_heads(name, heads, kv_heads)


def architecture_of_heads(name: str, heads: int, kv_heads: int) -> Architecture:
    """Return the architecture of Llama, Qwen2 or Qwen3 with numbers of heads, on which the order of rows depends."""
    turned = rotated_heads(heads, kv_heads) if name == "llama" else {}
    return Architecture(Family(name, {**LAYER, **turned}, TOP))
