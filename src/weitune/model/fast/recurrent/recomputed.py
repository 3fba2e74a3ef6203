"""What lies between a recurrent layer's projections, with little kept for backward (Chen et al., arXiv 1604.06174).

Convolutions, norms and gates are cheap and wide, so backward computes them again from what was projected. What the scan
took long for is taken from its :class:`.ScanMemory`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from weitune.model.fast.recurrent.places import ScanMemory
from weitune.model.fast.self_attention.positions import Positions

Compute = Callable[[Sequence[Tensor], Positions, ScanMemory], Tensor]
"""(what was projected, positions, the scan's memory) to what the output projection reads; differentiable by autograd"""


def recomputed(compute: Compute, projected: Sequence[Tensor], positions: Positions) -> Tensor:
    """Return what ``compute`` does; for its gradients it runs once more, with the memory that it has filled."""
    output: Tensor = _Recomputed.apply(compute, positions, *projected)  # type: ignore[no-untyped-call]
    return output


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Compute, positions: Positions, *projected: Tensor) -> Tensor:
        ctx.compute, ctx.positions, ctx.memory = compute, positions, ScanMemory()
        ctx.save_for_backward(*projected)
        return compute(projected, positions, ctx.memory)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        leaves = [each.detach().requires_grad_() for each in ctx.saved_tensors]
        with torch.enable_grad():
            output = ctx.compute(leaves, ctx.positions, ctx.memory)
        return None, None, *torch.autograd.grad(output, leaves, grads[0])
