"""A selective state space as a layer: Mamba-2 (Dao and Gu, arXiv 2405.21060).

    x ─ in_proj ─┬─ values, keys B, queries C ─ convolution ─ SiLU ─┐
                 ├─ step Δ = softplus(dt + bias) ───────────────────┼─ scan + D · values ─ norm and gate ─ out_proj ─▶
                 └─ gate SiLU(z) ───────────────────────────────────┘

Each token adds B · Δ · value to the state, which decays by exp(-exp(A_log) Δ). There are H heads of values of size P;
each of the G pairs of keys and queries of size N serves H/G of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from weitune.model.fast.recurrent.chunks import Chunks, PathWindows
from weitune.model.fast.recurrent.mixer import Recurrence, read_recurrence
from weitune.model.fast.recurrent.path_conv import Taps, convolved_heads, read_taps
from weitune.model.fast.recurrent.places import ScanMemory
from weitune.model.fast.recurrent.recomputed import recomputed
from weitune.model.fast.recurrent.scan import state_space
from weitune.model.fast.self_attention.observe import Rows
from weitune.model.fast.self_attention.positions import Positions

Gate = Literal["before the norm", "after the norm", "without a norm"]
_GATES: Sequence[Gate] = "before the norm", "after the norm"


@dataclass(frozen=True, slots=True, eq=False)
class StateSpace:
    """What lies between the projections of one layer: (T, ...) to (T, H·P)."""

    module: Any
    taps: Taps
    heads: int
    """H"""
    groups: int
    """G, for which the norm takes its means apart too"""
    gate: Gate

    def __call__(self, projected: Sequence[Tensor], positions: Positions) -> Tensor:
        return recomputed(self, projected, positions)

    def split(self, projected: Sequence[Tensor]) -> list[Tensor]:
        """Return gate, value, key B, query C and step dt of each of the G groups of heads, (T, G, ...)."""
        (inputs,) = projected
        inner = inputs.shape[1] - self.taps.channels - self.heads
        width = (self.taps.channels - inner) // 2
        parts = inputs.split([inner, inner, width, width, self.heads], dim=1)
        return [each.unflatten(1, (self.groups, -1)) for each in parts]

    def compute(self, inputs: Sequence[Tensor], heads: slice, positions: Positions, memory: ScanMemory) -> Tensor:
        """Return what some groups of heads, ``heads``, give, (T, g, H/G·P), from their ``inputs`` (T, g, ...)."""
        tree, shared = positions.packed, self.heads // self.groups
        gate, *mixed, step = self._scaled(inputs, heads)
        windows = PathWindows.of(tree, self.taps.count)
        value, key, query = convolved_heads(mixed, self.taps, heads, self.groups, windows)
        exact = value.dtype
        key, query = (each.repeat_interleave(shared, dim=1) for each in (key, query))
        value = value.reshape(len(value), key.shape[1], -1)
        own = slice(heads.start * shared, heads.stop * shared)
        numbers = self.module.A_log, self.module.dt_bias, self.module.D
        rate, bias, skip = (each.detach()[own].to(exact) for each in numbers)
        step = F.softplus(step.flatten(1).to(exact) + bias).clamp(*self.module.time_step_limit)
        read = state_space(query, key, value * step.unsqueeze(-1), -rate.exp() * step, Chunks.of(tree), memory)
        read = (read + skip[:, None] * value).reshape(gate.shape)
        return self._gated(read, gate.to(exact), heads).to(gate.dtype)

    def _scaled(self, inputs: Sequence[Tensor], heads: slice) -> Sequence[Tensor]:
        """Return ``inputs`` times the factors that Falcon-H1 has for the layer's input and for its parts."""
        whole, parts = getattr(self.module, "ssm_in_multiplier", 1.0), getattr(self.module, "mup_vector", None)
        if parts is None:
            return inputs
        factors = self.split([whole * parts.view(1, -1).to(inputs[0].dtype)])
        return [each * factor[:, heads] for each, factor in zip(inputs, factors, strict=True)]

    def _gated(self, read: Tensor, gate: Tensor, heads: slice) -> Tensor:
        if self.gate == "without a norm":
            return read * F.silu(gate)
        norm = self.module.norm
        x = read * F.silu(gate) if self.gate == "before the norm" else read
        x = x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
        normed: Tensor = x * norm.weight.detach().to(read.dtype).unflatten(0, (self.groups, -1))[heads]
        return normed * F.silu(gate) if self.gate == "after the norm" else normed


def read_state_space(module: Any, rows: Rows) -> Recurrence | None:
    """Return the layer that ``module`` is, or None if it has not these parts; see :func:`.read_recurrence`."""
    taps, rate = read_taps(getattr(module, "conv1d", None)), getattr(module, "A_log", None)
    groups = getattr(module, "n_groups", 0)
    if taps is None or rate is None or rate.dim() != 1 or not groups or not hasattr(module, "D"):
        return None
    gates = _GATES if hasattr(module.norm, "weight") else ("without a norm",)
    middles = [StateSpace(module, taps, len(rate), groups, gate) for gate in gates]
    return read_recurrence(module, ("in_proj",), "out_proj", middles, rows)
