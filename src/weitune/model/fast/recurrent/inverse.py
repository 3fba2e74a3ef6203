"""The inverse of unit lower triangular matrices by blocks of products.

    ⎛ A   ⎞⁻¹   ⎛    A⁻¹          ⎞
    ⎝ B D ⎠   = ⎝ -D⁻¹ B A⁻¹  D⁻¹ ⎠

from blocks of one number upwards. It is as stable as substitution, and in a batch of small matrices many times faster
than ``torch.linalg.solve_triangular`` on a CPU.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def unit_lower_inverse(lower: Tensor) -> Tensor:
    """Return the inverse of 1 + L, where L is the part of ``lower`` (..., C, C) strictly below the diagonal."""
    size = lower.shape[-1]
    spare = (1 << (size - 1).bit_length()) - size  # to a power of two
    lower = F.pad(lower, (0, spare, 0, spare))
    *lead, whole, _ = lower.shape
    inverse, side = lower.new_ones(*lead, whole, 1, 1), 1
    while side < whole:
        pairs = whole // (2 * side)
        blocks = lower.reshape(*lead, pairs, 2 * side, pairs, 2 * side).diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
        below, first, second = blocks[..., side:, :side], inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        merged = lower.new_zeros(*lead, pairs, 2 * side, 2 * side)
        merged[..., :side, :side], merged[..., side:, side:] = first, second
        merged[..., side:, :side] = -(second * below * first if side == 1 else second @ below @ first)
        inverse, side = merged, 2 * side
    return inverse.squeeze(-3)[..., :size, :size]
