"""The second half of attention in one pass: from what was projected to the output.

What lies between the projections is differentiated by autograd, from leaves that backward starts at again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weitune.model.fast.lora_forward import GroupPass

Middle = Callable[[Sequence[Tensor], Any], Tensor]
"""(what was projected, positions) to what the output projection reads, (T, H·D); differentiable by autograd."""


@dataclass(slots=True, eq=False)
class Attended:
    """What forward keeps for backward."""

    projected: Sequence[Tensor]
    """the leaves of the graph"""
    output: Tensor
    """(T, H·D), with the graph"""
    low: Tensor | None
    rows: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class AttendingPass:
    """Attention and the output projection."""

    middle: Middle
    output: GroupPass
    positions: Any

    def forward(self, projected: Sequence[Tensor], base: Tensor | None, rows: Tensor | None) -> tuple[Tensor, Attended]:
        """Return ``base``, if there is one, plus the output for ``rows``, or for all."""
        leaves = [each.requires_grad_() for each in projected]
        with torch.enable_grad():
            attended = self.middle(leaves, self.positions)
        taken = attended.detach()
        if rows is not None:
            taken = taken[rows]
        (output,), low = self.output.forward(taken)
        if base is not None:
            output.add_(base)
        return output, Attended(leaves, attended, low, rows)

    def backward(self, grad: Tensor, saved: Attended, *, retain: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gradients of what was projected, and those of the output projection's adapter."""
        attended = saved.output.detach()
        taken = attended if saved.rows is None else attended[saved.rows]
        grad_attended, adapter_grads = self.output.backward([grad], saved.low, taken)
        if saved.rows is not None:
            grad_attended = torch.zeros_like(attended).index_copy_(0, saved.rows, grad_attended)
        grads = torch.autograd.grad(saved.output, saved.projected, grad_attended, retain_graph=retain)
        return list(grads), adapter_grads
