"""LoRA dropout that is cheap to draw and is never stored.

Drawing a Bernoulli mask for the input of every adapter takes a tenth of a training step on a CPU. Here one long vector
of independent draws is made for a forward pass, and each mask is a window of it at a random offset:

    draws    1 1 0 1 1 1 1 0 1 1 1 1 1 0 1 …           length: the largest mask + SLACK
    mask a         └──────────────┘                   offset 3
    mask b   … └──────────────┘                       another offset

Within a mask all elements are independent, as in ordinary dropout; two masks of one pass share draws at unrelated
positions. A mask is identified by its offset, so backward makes it again at no cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNIT = 16
"""Offsets are multiples of this, so that vector loads are aligned."""
SLACK = UNIT << 14
"""Offsets are smaller than this."""


class DropoutDraws:
    """The draws of one forward pass: 1 with probability 1 - ``rate``, else 0."""

    def __init__(self, rate: float, length: int, device: torch.device, dtype: torch.dtype) -> None:
        """Draw from torch's default generators; ``length`` is the number of elements of the largest mask."""
        self.scale = 1.0 / (1.0 - rate)
        """The factor for kept elements. The caller applies it, since it multiplies by a constant anyway."""
        self._draws = torch.empty(length + SLACK, dtype=torch.float32, device=device).uniform_().ge_(rate).to(dtype)

    def draw_offset(self) -> int:
        return int(torch.randint(SLACK // UNIT, ())) * UNIT

    def mask(self, offset: int, shape: tuple[int, int]) -> Tensor:
        """Return the mask of ``shape`` at ``offset``: a view, not a copy."""
        return self._draws[offset : offset + shape[0] * shape[1]].view(shape)
