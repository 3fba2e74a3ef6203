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
from weitune.model.fast.recurrent.path_conv import Taps, path_conv, read_taps
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
        return recomputed(self._compute, projected, positions)

    def _compute(self, projected: Sequence[Tensor], positions: Positions, memory: ScanMemory) -> Tensor:
        tree, inputs = positions.packed, self._scaled(projected[0])
        inner = inputs.shape[1] - self.taps.channels - self.heads
        gate, mixed, step = inputs.split([inner, self.taps.channels, self.heads], dim=1)
        mixed = F.silu(path_conv(mixed, self.taps, PathWindows.of(tree, self.taps.count)))
        exact, width = mixed.dtype, (self.taps.channels - inner) // 2
        value, key, query = mixed.split([inner, width, width], dim=1)
        shared = self.heads // self.groups
        key, query = (each.unflatten(1, (self.groups, -1)).repeat_interleave(shared, dim=1) for each in (key, query))
        value = value.unflatten(1, (self.heads, -1))
        rate, bias, skip = (each.detach().to(exact) for each in (self.module.A_log, self.module.dt_bias, self.module.D))
        step = F.softplus(step.to(exact) + bias).clamp(*self.module.time_step_limit)
        read = state_space(query, key, value * step.unsqueeze(-1), -rate.exp() * step, Chunks.of(tree), memory)
        return self._gated((read + skip[:, None] * value).flatten(1), gate.to(exact)).to(inputs.dtype)

    def _scaled(self, inputs: Tensor) -> Tensor:
        """Return ``inputs`` times the factors that Falcon-H1 has for the layer's input and for its parts."""
        whole, parts = getattr(self.module, "ssm_in_multiplier", 1.0), getattr(self.module, "mup_vector", None)
        return inputs if parts is None else inputs * (whole * parts.view(-1).to(inputs.dtype))

    def _gated(self, read: Tensor, gate: Tensor) -> Tensor:
        if self.gate == "without a norm":
            return read * F.silu(gate)
        norm = self.module.norm
        x = (read * F.silu(gate) if self.gate == "before the norm" else read).unflatten(1, (self.groups, -1))
        x = x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
        normed: Tensor = x.flatten(1) * norm.weight.detach().to(read.dtype)
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
