"""Copies of frozen matrices in bfloat16 as oneDNN reads them, for training on processors with AMX.

PyTorch has oneDNN bring a matrix into its own order at every product. There the products are so fast that this takes a
large part of their time. A matrix W (N, K) is copied twice, for x Wᵀ and for x W: copies of all matrices take twice
the memory of the matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from weitune.model.fast.matmul import add_packed, multiply_packed, pack
from weitune.processor import processor_features

COPIES = 2
"""How many copies are made of a matrix."""
_ROWS = 512
"""About the rows of a pass."""


@functools.cache
def packing_pays() -> bool:
    """Return whether products with copies are much faster on this processor: whether it has AMX for bfloat16."""
    return torch.backends.mkldnn.is_available() and bool(processor_features().get("amx_bf16"))


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """The copies of a frozen matrix W (N, K)."""

    source: Tensor
    """W; it is kept, so that no other matrix can lie where it lies"""
    straight: Tensor
    turned: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> PackedMatrix:
        weight = weight.detach()
        return cls(weight, pack(weight, _ROWS), pack(weight.T, _ROWS))

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x Wᵀ + b of ``x`` (T, K) and ``bias`` (N,)."""
        return multiply_packed(x, self.straight, bias)

    def add_linear(self, total: Tensor, x: Tensor) -> Tensor:
        """Return ``total`` (T, N) + x Wᵀ, rounded once."""
        return add_packed(total, x, self.straight)

    def times(self, x: Tensor) -> Tensor:
        """Return x W of ``x`` (T, N)."""
        return multiply_packed(x, self.turned)

    def add_times(self, total: Tensor, x: Tensor) -> Tensor:
        """Return ``total`` (T, K) + x W, rounded once."""
        return add_packed(total, x, self.turned)


_packed: WeakKeyDictionary[nn.Module, PackedMatrix] = WeakKeyDictionary()


def pack_layers(layers: Iterable[nn.Module]) -> None:
    """Make copies of the matrices of linear layers. They serve as long as a layer has the same matrix."""
    for layer in layers:
        _packed[layer] = PackedMatrix.of(layer.weight)  # type: ignore[arg-type]


def packed_matrix(layer: Any) -> PackedMatrix | None:
    """Return the copies of the matrix of ``layer``, if there are any.

    An adapter that is taken from the base (PiSSA, OLoRA) replaces the matrix; copies of the one before are no copies.
    """
    copies = _packed.get(layer)
    return copies if copies is not None and copies.source.data_ptr() == layer.weight.data_ptr() else None


def can_be_packed(layer: Any) -> bool:
    """Return whether ``layer`` is a plain linear layer on a CPU whose frozen matrix is stored in bfloat16."""
    if type(layer) is not nn.Linear:
        return False
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and not weight.requires_grad
