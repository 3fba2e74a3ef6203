"""A family as a ``.gguf`` file has it, in both directions.

    model.layers.0.self_attn.q_proj.weight  ◀─▶  blk.0.attn_q.weight

Llama and Mistral, Qwen2 and Qwen3 are known by a file's header; the others by their configuration in transformers,
from which their :class:`Family` is made. What a family does to the rows and columns of a matrix is undone by doing it
to their numbers once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weitune.gguf.families.dense import LAYER, TOP, rotated_heads
from weitune.gguf.families.family import Family, Operation, Part, Parts, Pieces, listed, same
from weitune.gguf.header import GgufHeader, StoredTensor

_KNOWN = ("llama", "qwen2", "qwen3")
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_COMPUTED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that transformers computes."""
_TOWERS = ("v.", "mm.")
"""How the names of a vision tower's tensors begin."""


@dataclass(frozen=True)
class Architecture:
    """What the tensors of a ``.gguf`` file are in transformers."""

    family: Family

    @property
    def name(self) -> str:
        return self.family.name

    def parameter_of(self, tensor: str) -> str | None:
        """Return transformers' name of the parameter that a GGUF tensor is, or is a part of; None if there is none."""
        match = _BLOCK.fullmatch(tensor)
        rest, names = (match[2], self._in_layer) if match else (tensor, self._at_top)
        stem, _, kind = rest.rpartition(".")
        found = names.get(rest) or (f"{names[stem]}.{kind}" if stem in names else None)
        return found and (f"model.layers.{match[1]}.{found}" if match else found)

    def tensors_of(self, name: str) -> list[str]:
        """Return the names of the GGUF tensors that the parameter ``name`` becomes."""
        return [part.name for part in self.family.parts(name) or ()]

    def to_gguf(self, name: str, parameter: Tensor, tensor: str | None = None) -> Tensor:
        """Return the parameter ``name`` of transformers (rows first) as llama.cpp has it.

        ``tensor`` says which of several tensors is meant.
        """
        return self._part(name, tensor).of(parameter)

    def importance_to_gguf(self, name: str, importance: Tensor, tensor: str | None = None) -> Tensor | None:
        """Return the importance of the columns of the parameter ``name``, shape (in,), in llama.cpp's order."""
        return self._part(name, tensor).of_importance(importance)

    def to_huggingface(self, name: str, *tensors: Tensor) -> Tensor:
        """Return the parameter ``name`` of transformers of the ``tensors`` (rows first) that it becomes in a file."""
        entry = self._entry(name)
        if isinstance(entry, Pieces):
            return entry.whole(*tensors)
        [tensor], [part] = tensors, listed(entry)
        tensor = part.undo(tensor)
        rows = _undone(part.rows, tensor)
        return rows if part.columns is same else _undone(part.columns, rows.transpose(0, 1)).transpose(0, 1)

    def shape_of(self, name: str, *shapes: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the parameter ``name`` of the shapes of its tensors in a file."""
        entry, tensors = self._entry(name), [torch.empty(tuple(shape), device="meta") for shape in shapes]
        whole = entry.whole(*tensors) if isinstance(entry, Pieces) else listed(entry)[0].undo(tensors[0])
        return tuple(whole.shape)

    def _part(self, name: str, tensor: str | None) -> Part:
        parts = self.family.parts(name) or []
        [part] = parts if tensor is None else [part for part in parts if part.name == tensor]
        return part

    def _entry(self, name: str) -> str | Part | Pieces:
        entry = self.family.entry(name)
        assert entry is not None, name  # noqa: S101  (for mypy)
        return entry

    @cached_property
    def _in_layer(self) -> Mapping[str, str]:
        return _reversed(self.family.layer)

    @cached_property
    def _at_top(self) -> Mapping[str, str]:
        return _reversed(self.family.top)


def _reversed(parts: Parts) -> dict[str, str]:
    """Return the names in transformers by those in GGUF."""
    return {part.name: name for name, entry in parts.items() for part in listed(entry)}


def _undone(operation: Operation, tensor: Tensor) -> Tensor:
    """Return what ``operation`` made ``tensor`` of: it orders rows in another way, adds a number, or scales rows."""
    if operation is same:
        return tensor
    numbers = torch.arange(tensor.shape[0], dtype=torch.float64)
    added = operation(torch.zeros_like(numbers))
    factors = operation(torch.ones_like(numbers)) - added
    order = ((operation(numbers) - added) / factors).round().long()
    if not (added == 0).all():
        tensor = tensor - _by_row(added, tensor)
    if not (factors == 1).all():
        tensor = tensor / _by_row(factors, tensor)
    original = torch.empty_like(tensor)
    original[order] = tensor
    return original


def _by_row(numbers: Tensor, tensor: Tensor) -> Tensor:
    return numbers.to(tensor.dtype).reshape(-1, *[1] * (tensor.dim() - 1))


def stored_parameters(architecture: Architecture, header: GgufHeader) -> dict[str, list[StoredTensor]]:
    """Return the tensors of each parameter that is complete in a file, by its name in transformers."""
    tensors = tensors_that_are_run(header)
    names = dict.fromkeys(architecture.parameter_of(tensor) for tensor in tensors)
    found = {name: architecture.tensors_of(name) for name in names if name}
    complete = {name: parts for name, parts in found.items() if parts and set(parts) <= tensors.keys()}
    return {name: [tensors[part] for part in parts] for name, parts in complete.items()}


def tensors_that_are_run(header: GgufHeader) -> dict[str, StoredTensor]:
    """Return the tensors of a file that transformers has as parameters.

    Left out are those that it computes, layers that predict several tokens at once, which it does not run, and towers.
    """
    name = header.architecture
    layers = header.get(f"{name}.block_count", 0) - header.get(f"{name}.nextn_predict_layers", 0)
    blocks = {tensor: _BLOCK.fullmatch(tensor) for tensor in header.tensors if tensor not in _COMPUTED}
    blocks = {tensor: block for tensor, block in blocks.items() if not tensor.startswith(_TOWERS)}
    return {tensor: header.tensors[tensor] for tensor, block in blocks.items() if not block or int(block[1]) < layers}


def known_architecture(header: GgufHeader) -> Architecture | None:
    """Return the architecture of a ``.gguf`` file; None if the header does not tell it, or if there are experts."""
    name = header.architecture
    heads = header.get(f"{name}.attention.head_count")
    kv_heads = header.get(f"{name}.attention.head_count_kv", heads)
    dense = not header.get(f"{name}.expert_count")  # llama.cpp writes 0
    if name not in _KNOWN or not dense or not isinstance(heads, int) or not isinstance(kv_heads, int):
        return None
    return architecture_of_heads(name, heads, kv_heads)


def architecture_of_heads(name: str, heads: int, kv_heads: int) -> Architecture:
    """Return the architecture of Llama, Qwen2 or Qwen3 with numbers of heads, on which the order of rows depends."""
    turned = rotated_heads(heads, kv_heads) if name == "llama" else {}
    return Architecture(Family(name, {**LAYER, **turned}, TOP))
