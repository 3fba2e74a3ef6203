"""The gated delta rule as a layer (Yang et al., arXiv 2412.06464), as Qwen3-Next and Qwen3.5 have it.

    x ─┬─ query, key, value ─ convolution ─ SiLU ─┐
       ├─ strength β = sigmoid(b) ────────────────┼─ delta rule ─ norm · SiLU(z) ─ out_proj ─▶
       ├─ decay g = -exp(A_log) softplus(a + dt) ─┘                     │
       └─ gate z ───────────────────────────────────────────────────────┘

There are G heads of queries and keys of size D, and H heads of values of size V; keys and queries are normalised, and
each serves H/G heads of values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from weitune.model.fast.recurrent.chunks import Chunks, PathWindows
from weitune.model.fast.recurrent.mixer import Recurrence, read_recurrence
from weitune.model.fast.recurrent.path_conv import Taps, convolved_heads, read_taps
from weitune.model.fast.recurrent.places import ScanMemory
from weitune.model.fast.recurrent.recomputed import recomputed
from weitune.model.fast.recurrent.scan import gated_delta_rule
from weitune.model.fast.self_attention.observe import Rows
from weitune.model.fast.self_attention.positions import Positions

_APART = "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"
_TOGETHER = "in_proj_qkvz", "in_proj_ba"
_OUTPUT = "out_proj"
_LEAST_SQUARE = 1e-6
"""What the sum of squares of a key or query is increased by before its root is taken"""


@dataclass(frozen=True, slots=True, eq=False)
class GatedDelta:
    """What lies between the projections of one layer: (T, ...) to (T, H·V)."""

    module: Any
    taps: Taps
    key_heads: int
    """G"""
    value_heads: int
    """H"""
    value_size: int
    """V"""

    @property
    def key_size(self) -> int:
        return (self.taps.channels - self.value_heads * self.value_size) // (2 * self.key_heads)

    def __call__(self, projected: Sequence[Tensor], positions: Positions) -> Tensor:
        return recomputed(self, projected, positions)

    def split(self, projected: Sequence[Tensor]) -> list[Tensor]:
        """Return query, key, value, gate, strength b and step a of each head of keys, (T, G, ...)."""
        width = self.value_heads // self.key_heads * self.value_size
        if len(projected) == len(_TOGETHER):
            both, of_step = (each.unflatten(1, (self.key_heads, -1)) for each in projected)
            sizes = [self.key_size, self.key_size, width, width]
            return [*both.split(sizes, dim=2), *of_step.chunk(2, dim=2)]
        mixed, *others = projected
        apart = mixed.split([each * self.key_heads for each in (self.key_size, self.key_size, width)], dim=1)
        return [each.unflatten(1, (self.key_heads, -1)) for each in (*apart, *others)]

    def compute(self, inputs: Sequence[Tensor], heads: slice, positions: Positions, memory: ScanMemory) -> Tensor:
        """Return what some ``heads`` of keys give, (T, g, H/G·V), from their ``inputs`` (T, g, ...)."""
        *mixed, gate, strength, step = inputs
        tree, taps = positions.packed, self.taps
        windows = PathWindows.of(tree, taps.count)
        query, key, value = convolved_heads(mixed, taps, heads, self.key_heads, windows)
        exact = query.dtype
        query, key = _unit(query, self.key_size**-0.5), _unit(key)
        if (shared := self.value_heads // self.key_heads) > 1:
            query, key = query.repeat_interleave(shared, dim=1), key.repeat_interleave(shared, dim=1)
        of_values = slice(heads.start * shared, heads.stop * shared)
        rate, bias = (each.detach()[of_values].to(exact) for each in (self.module.A_log, self.module.dt_bias))
        decay = -rate.exp() * F.softplus(step.flatten(1).to(exact) + bias)
        read = gated_delta_rule(
            query,
            key,
            value.reshape(len(value), -1, self.value_size),
            decay,
            strength.flatten(1).to(exact).sigmoid(),
            Chunks.of(tree),
            memory,
        )
        output = self._gated(read, gate.reshape(read.shape).to(exact)).to(gate.dtype)
        return output.view(gate.shape)

    def _gated(self, read: Tensor, gate: Tensor) -> Tensor:
        norm = self.module.norm
        inverse = (read.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
        gated: Tensor = read * inverse * norm.weight.detach().to(read.dtype) * F.silu(gate)
        return gated


def _unit(x: Tensor, length: float = 1.0) -> Tensor:
    return x * ((x.square().sum(-1, keepdim=True) + _LEAST_SQUARE).rsqrt() * length)


def read_gated_delta(module: Any, rows: Rows) -> Recurrence | None:
    """Return the layer that ``module`` is, or None if it has not these parts; see :func:`.read_recurrence`."""
    taps, names = read_taps(getattr(module, "conv1d", None)), [n for n, _ in module.named_children()]
    inputs = next((each for each in (_APART, _TOGETHER) if set(each) <= set(names)), None)
    heads, rate = getattr(module, "num_k_heads", 0), getattr(module, "A_log", None)
    if taps is None or inputs is None or not heads or rate is None or "norm" not in names:
        return None
    middle = GatedDelta(module, taps, heads, len(rate), module.norm.weight.shape[0])
    return read_recurrence(module, inputs, _OUTPUT, [middle], rows)
