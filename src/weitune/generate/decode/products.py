"""Products of a few rows with the frozen matrices of a model, which take as long as reading the matrices.

as stored   x Wᵀ for each linear layer, by the faster of the two libraries
packed      the matrices that read one input as one, in the order in which oneDNN reads it; up to twice as fast
four bits   groups of 32 numbers with a scale and an offset each: a quarter or an eighth of the bytes, and rounded

Packed matrices and those of four bits are copies: for weights that stay as they are, on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weitune.model.fast.matmul import linear, packed_linear, packs
from weitune.model.fast.projection import LoraGroup, Projection
from weitune.model.storage.host_memory import host_memory

Times: TypeAlias = "Callable[[Tensor], Tensor]"
"""From x (T, K) to one tensor (T, N)."""

_FEW_ROWS = 64
"""Rows up to which oneDNN may multiply what is not packed: it generates code for every number of rows."""
_GROUP = 32
"""Numbers of a row that share a scale."""
_ROWS_AT_ONCE = 1024
"""Rows of a matrix that are rounded at once; a multiple of the 64 that the packed order has together."""
_SPARE = 2
"""Copies are made only if so many times their size is free."""


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """From x (T, K) to the outputs (T, N) of the linear layers that read it."""

    apart: Callable[[Tensor], list[Tensor]]
    joined: Times | None = None
    """All outputs side by side in one tensor, if they are computed so"""

    def __call__(self, x: Tensor) -> list[Tensor]:
        return self.apart(x)

    def whole(self, x: Tensor) -> Tensor:
        """Return all outputs side by side."""
        return self.joined(x) if self.joined else torch.cat(self.apart(x), dim=1)


def as_stored(group: LoraGroup, dtype: torch.dtype) -> Product:
    """Return what multiplies by the matrices of ``group`` as they are stored, and by its adapters."""
    frozen = [_times(projection, dtype) for projection in group.projections]
    return _with_adapters(Product(lambda x: [times(x) for times in frozen]), group, dtype)


def packed(group: LoraGroup, dtype: torch.dtype) -> Product:
    """Return what multiplies by a packed copy of the matrices of ``group``, all at once, and by its adapters."""
    weights = [projection.weight(dtype) for projection in group.projections]
    times = packed_linear(torch.cat(weights) if len(weights) > 1 else weights[0], _joined_bias(group, dtype))
    return _at_once(times, group, dtype)


def of_four_bits(group: LoraGroup) -> Product:
    """Return what multiplies, in bfloat16, by a copy of the matrices of ``group`` in 4 bits, and by its adapters."""
    dtype = torch.bfloat16
    times, bias = FourBits.of([p.weight(p.layer.weight.dtype) for p in group.projections]), _joined_bias(group, dtype)
    return _at_once(times if bias is None else lambda x: times(x).add_(bias), group, dtype)


def _at_once(times: Times, group: LoraGroup, dtype: torch.dtype) -> Product:
    """Return the product of ``times``, which multiplies by all matrices of ``group`` at once, and by its adapters."""
    sizes = [projection.shape[0] for projection in group.projections]
    if len(sizes) == 1:
        return _with_adapters(Product(lambda x: [times(x)], times), group, dtype)
    return _with_adapters(Product(lambda x: list(times(x).split(sizes, dim=1)), times), group, dtype)


@dataclass(frozen=True, slots=True, eq=False)
class FourBits:
    """A matrix (N, K) in 4 bits: each number is (code - 8) · scale + offset of its group."""

    codes: Tensor
    scales: Tensor
    """(K / 32, N, 2): scale and offset of each group"""

    @classmethod
    def of(cls, weights: Sequence[Tensor]) -> FourBits:
        """Round the rows of all ``weights``, one below the other."""
        parts = [_rounded(part) for part in _row_blocks(weights)]
        scales = torch.cat([scales for _, scales in parts]).transpose(0, 1)
        return cls(torch.cat([codes for codes, _ in parts]), scales.contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        """Return x Wᵀ of ``x`` (T, K) in bfloat16."""
        product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu.default(x, self.codes, _GROUP, self.scales)
        return product


def can_be_packed(groups: Sequence[LoraGroup], dtype: torch.dtype) -> bool:
    """Return whether the matrices of ``groups`` can be copied in oneDNN's order, with memory to spare."""
    return packs(dtype) and _are_plain(groups, dtype) and _fits(_numbers(groups) * dtype.itemsize)


def can_be_rounded(groups: Sequence[LoraGroup], dtype: torch.dtype) -> bool:
    """Return whether the matrices of ``groups`` can be copied in 4 bits, with memory to spare, and multiplied fast."""
    fast = torch.backends.cpu.get_cpu_capability() in {"AVX512", "AVX2"}
    shapes = [projection.shape for group in groups for projection in group.projections]
    fitting = all(outputs % 16 == 0 and inputs % _GROUP == 0 for outputs, inputs in shapes)
    return fast and fitting and _are_plain(groups, dtype) and _fits(_numbers(groups) * 5 // 8)


def _are_plain(groups: Sequence[LoraGroup], dtype: torch.dtype) -> bool:
    layers = [projection.layer for group in groups for projection in group.projections]
    return all(type(x) is nn.Linear and x.weight.dtype == dtype and x.weight.device.type == "cpu" for x in layers)


def _numbers(groups: Sequence[LoraGroup]) -> int:
    return sum(p.shape[0] * p.shape[1] for group in groups for p in group.projections)


def _fits(size_bytes: int) -> bool:
    return _SPARE * size_bytes <= host_memory().available


def _with_adapters(frozen: Product, group: LoraGroup, dtype: torch.dtype) -> Product:
    factors = group.factors(dtype, 1.0)
    return frozen if factors is None else Product(lambda x: factors.add_to(frozen(x), F.linear(x, factors.a)))


def _times(projection: Projection, dtype: torch.dtype) -> Times:
    """Return what multiplies by one matrix."""
    layer = projection.layer
    if type(layer) is not nn.Linear or layer.weight.dtype != dtype:
        if projection.part is None:
            return lambda x: layer(x)  # quantized: its own kernel  # noqa: PLW0108
        return lambda x: F.linear(x, projection.weight(dtype), projection.bias(dtype))
    weight, bias = projection.weight(dtype), projection.bias(dtype)
    return lambda x: (linear if len(x) <= _FEW_ROWS else F.linear)(x, weight, bias)


def _joined_bias(group: LoraGroup, dtype: torch.dtype) -> Tensor | None:
    """Return the biases (N,) of all projections, one after the other, if there is one."""
    biases = [projection.bias(dtype) for projection in group.projections]
    if all(bias is None for bias in biases):
        return None
    pairs = zip(biases, group.projections, strict=True)
    return torch.cat([torch.zeros(p.shape[0], dtype=dtype) if bias is None else bias.detach() for bias, p in pairs])


def _row_blocks(weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield blocks of rows of all ``weights``, across their borders."""
    left: list[Tensor] = []
    for weight in weights:
        for part in weight.detach().split(64):
            left.append(part)
            if sum(map(len, left)) >= _ROWS_AT_ONCE:
                whole = torch.cat(left)
                yield whole[:_ROWS_AT_ONCE]
                left = [whole[_ROWS_AT_ONCE:]]
    if rest := [part for part in left if len(part)]:
        yield torch.cat(rest)


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes of ``weight`` (N, K) in the order that the product reads, and the scales (N, K / 32, 2)."""
    rows, inputs = weight.shape
    groups = weight.float().view(rows, inputs // _GROUP, _GROUP)
    low, high = groups.aminmax(dim=-1)
    scale = ((high - low) / 15).to(torch.bfloat16).float().clamp_(min=1e-30)
    offset = (low + 8 * scale).to(torch.bfloat16)
    codes = torch.addcmul((8.5 - offset.float() / scale)[..., None], groups, scale.reciprocal()[..., None])
    codes = codes.clamp_(0, 15).to(torch.int32).view(rows, inputs)
    scales = torch.stack([scale.to(torch.bfloat16), offset], dim=-1)
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1), scales
