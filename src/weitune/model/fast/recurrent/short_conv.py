"""A gated convolution of a few taps as a layer, as LFM2 has it.

x ─ in_proj ─ b, c, v        c · convolution(b · v) ─ out_proj ─▶
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weitune.model.fast.recurrent.chunks import PathWindows
from weitune.model.fast.recurrent.mixer import Recurrence, read_recurrence
from weitune.model.fast.recurrent.path_conv import Taps, path_conv, read_taps
from weitune.model.fast.self_attention.observe import Rows
from weitune.model.fast.self_attention.positions import Positions


@dataclass(frozen=True, slots=True, eq=False)
class ShortConv:
    """What lies between the projections of one layer: (T, 3·C) to (T, C)."""

    taps: Taps

    def __call__(self, projected: Sequence[Tensor], positions: Positions) -> Tensor:
        before, after, value = projected[0].chunk(3, dim=1)
        windows = PathWindows.of(positions.packed, self.taps.count)
        return after * path_conv(before * value, self.taps, windows).to(after.dtype)


def read_short_conv(module: Any, rows: Rows) -> Recurrence | None:
    """Return the layer that ``module`` is, or None if it has not these parts; see :func:`.read_recurrence`."""
    taps = read_taps(getattr(module, "conv", None))
    return read_recurrence(module, ("in_proj",), "out_proj", [ShortConv(taps)], rows) if taps else None
