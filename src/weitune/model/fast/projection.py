"""A linear layer with its adapter, as plain tensors: y = x Wᵀ + b + s · dropout(x) Aᵀ Bᵀ  (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from weitune.model.fast import matmul
from weitune.model.fast.packed import PackedMatrix, packed_matrix
from weitune.model.storage.weight_storage import ALL, dense, is_linear


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A frozen linear layer of N outputs and K inputs, and the adapter of rank R on it, if there is one."""

    layer: Any
    """The linear layer, stored as :mod:`.weight_storage` knows it."""
    shape: tuple[int, int]
    """(N, K)"""
    a: nn.Parameter | None = None
    """(R, K)"""
    b: nn.Parameter | None = None
    """(N, R)"""
    scale: float | Tensor = 0.0
    """alpha / R; in a pass of DoRA times the factor of each row, (N, 1)"""
    rate: float = 0.0
    """dropout rate of the adapter's input"""
    magnitude: nn.Parameter | None = None
    """(N,) DoRA's m, if it is a DoRA adapter"""
    row_factors: Tensor | None = None
    """(N,) what DoRA multiplies the rows of the frozen matrix by in a pass"""
    part: slice | None = None
    """Which outputs of the layer these are, if several projections are fused in it. They share A, and each has rows of
    B and m of its own."""

    def weight(self, dtype: torch.dtype, outputs: slice = ALL, inputs: slice = ALL) -> Tensor:
        """Return the frozen matrix (N, K), or a part of it, in ``dtype``."""
        weight = dense(self.layer, dtype, self._of_layer(outputs), inputs)
        if self.row_factors is None:
            return weight
        return (weight * self.row_factors[outputs, None]).to(dtype)  # a factor in 16 bits would miss m's first steps

    def bias(self, dtype: torch.dtype, outputs: slice = ALL) -> Tensor | None:
        """Return the frozen bias (N,), or a part of it, if there is one."""
        bias: Tensor | None = self.layer.bias
        return None if bias is None else bias[self._of_layer(outputs)].to(dtype)

    def linear(self, x: Tensor, outputs: slice = ALL) -> Tensor:
        """Return x Wᵀ + b of ``x`` (T, K), or some columns of it."""
        bias = self.bias(x.dtype, outputs)
        if outputs == ALL and (packed := self._packed(x.dtype)):
            return packed.linear(x, bias)
        return matmul.linear(x, self.weight(x.dtype, outputs), bias)

    def add_linear(self, total: Tensor, x: Tensor, inputs: slice = ALL) -> Tensor:
        """Return ``total`` (T, N) + x Wᵀ, of some of the inputs; ``total`` may be overwritten."""
        if inputs == ALL and (packed := self._packed(x.dtype)):
            return packed.add_linear(total, x)
        matmul.add_linear(total, x, self.weight(x.dtype, inputs=inputs))
        return total

    def times(self, x: Tensor, inputs: slice = ALL) -> Tensor:
        """Return x W of ``x`` (T, N), or some columns of it."""
        if inputs == ALL and (packed := self._packed(x.dtype)):
            return packed.times(x)
        return matmul.times(x, self.weight(x.dtype, inputs=inputs))

    def add_times(self, total: Tensor, x: Tensor, outputs: slice = ALL) -> Tensor:
        """Return ``total`` (T, K) + x W, of some of the outputs; ``total`` may be overwritten."""
        if outputs == ALL and (packed := self._packed(x.dtype)):
            return packed.add_times(total, x)
        matmul.add_times(total, x, self.weight(x.dtype, outputs))
        return total

    def _packed(self, dtype: torch.dtype) -> PackedMatrix | None:
        """Return the copies of its matrix if they multiply ``dtype`` as :meth:`weight` would."""
        if dtype != torch.bfloat16 or self.part is not None or self.row_factors is not None:
            return None
        return packed_matrix(self.layer)

    @property
    def b_rows(self) -> Tensor | None:
        """(N, R) its rows of B"""
        return self.b if self.b is None or self.part is None else self.b[self.part]

    @property
    def magnitude_rows(self) -> Tensor | None:
        """(N,) its rows of m"""
        return self.magnitude if self.magnitude is None or self.part is None else self.magnitude[self.part]

    def split(self, sizes: Sequence[int]) -> list[Projection]:
        """Return the projections with so many outputs each that are fused in this one, in their order."""
        starts = list(accumulate(sizes, initial=0))
        inputs = self.shape[1]
        return [
            replace(self, shape=(size, inputs), part=slice(start, start + size))
            for start, size in zip(starts, sizes, strict=False)
        ]

    def _of_layer(self, outputs: slice) -> slice:
        if self.part is None:
            return outputs
        start, stop, _ = outputs.indices(self.shape[0])
        return slice(self.part.start + start, self.part.start + stop)

    @property
    def rank(self) -> int:
        return 0 if self.a is None else self.a.shape[0]


def read_projection(layer: Any) -> Projection | None:
    """Return the tensors of ``layer``: a linear layer, or PEFT's plain LoRA or DoRA on one; None for anything else."""
    if is_linear(layer):
        return Projection(layer, (layer.out_features, layer.in_features))
    base: Any = getattr(layer, "base_layer", None)
    if not is_linear(base) or getattr(layer, "active_adapters", None) != ["default"]:
        return None
    from peft.tuners.lora.variants import DoraLinearVariant

    plain_or_dora = type(layer.lora_variant.get("default")) in {type(None), DoraLinearVariant}
    if layer.merged or layer.lora_bias.get("default") or not plain_or_dora:
        return None
    shape, dropout = (base.out_features, base.in_features), layer.lora_dropout["default"]
    rate = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
    a, b, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, float(layer.scaling["default"])
    magnitudes = layer.lora_magnitude_vector
    magnitude = magnitudes["default"].weight if "default" in magnitudes else None
    return Projection(base, shape, a, b, scale, rate, magnitude)


class LoraGroup:
    """Projections that read the same input: one dropout mask and one product through all their A matrices.

    A projection without an adapter is a plain linear layer. Methods can work on a slice of the columns of wide outputs,
    so that the slice can be used while it is in cache.
    """

    def __init__(self, projections: list[Projection], *, reads_slices: bool = False) -> None:
        self.projections = projections
        self.reads_slices = reads_slices
        """Whether its input comes in slices of its columns."""
        self.rate = max(p.rate for p in projections)
        self.ranks = [p.rank for p in projections]
        self.inputs = projections[0].shape[1]
        """K"""

    @property
    def adapted(self) -> bool:
        return any(self.ranks)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B, and DoRA's m, of every adapter, in order, each once."""
        trained = (tensor for p in self.projections for tensor in (p.a, p.b, p.magnitude) if tensor is not None)
        return list(dict.fromkeys(trained))

    def frozen(self, inputs: Tensor, outputs: slice = ALL) -> list[Tensor]:
        """Return the outputs of the frozen layers for ``inputs`` (T, K), or the same columns of each."""
        return [p.linear(inputs, outputs) for p in self.projections]

    def factors(self, dtype: torch.dtype, dropout_scale: float) -> Factors | None:
        """Return the adapters' matrices in ``dtype``, or None without an adapter; B times ``dropout_scale``."""
        if not self.adapted:
            return None
        a = torch.cat([p.a.detach() for p in self.projections if p.a is not None])
        b = [
            None if p.b_rows is None else (p.b_rows.detach() * (p.scale * dropout_scale)).to(dtype)
            for p in self.projections
        ]
        if a.device.type == "cpu":
            b = [None if x is None else x.T.contiguous().T for x in b]
        return Factors(a.to(dtype), b, self.ranks)

    def add_grad_of_input(self, total: Tensor, grads: list[Tensor], outputs: slice = ALL) -> Tensor:
        """Return ``total`` (T, K) + the frozen layers' part of the input's gradient, from those of the outputs.

        ``total`` may be overwritten.
        """
        for p, grad in zip(self.projections, grads, strict=True):
            total = p.add_times(total, grad, outputs)
        return total


def read_group(owner: Any, names: Sequence[str]) -> LoraGroup | None:
    """Return the linear layers called ``names`` in the module ``owner``, or None if one is missing or not plain."""
    read = [read_projection(getattr(owner, name, None)) for name in names]
    plain = [projection for projection in read if projection]
    return LoraGroup(plain) if len(plain) == len(names) else None


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """The A and B matrices of a group's adapters, laid out for the products of one pass."""

    a: Tensor
    """(sum of R, K), one below the other"""
    b: list[Tensor | None]
    """(N, R) of each projection, times its constant factors; stored by columns on a CPU, where that makes products 2.5
    times faster"""
    ranks: list[int]

    def columns(self, outputs: slice) -> Factors:
        """Return the factors of some columns of every output."""
        if outputs == ALL:
            return self
        return Factors(self.a, [None if b is None else b[outputs] for b in self.b], self.ranks)

    def add_to(self, outputs: list[Tensor], low: Tensor) -> list[Tensor]:
        """Add the adapters' part to ``outputs`` in place: ``low`` (T, sum of R) through the B matrices."""
        for b, output, part in zip(self.b, outputs, low.split(self.ranks, dim=1), strict=True):
            if b is not None:
                output.addmm_(part, b.T)
        return outputs

    def grad_of_low(self, grads: list[Tensor]) -> Tensor:
        """Return the gradient of the low-rank states, (T, sum of R), from the gradients of the outputs."""
        parts = [grad @ b for b, grad in zip(self.b, grads, strict=True) if b is not None]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
