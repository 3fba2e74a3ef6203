"""What lies between a recurrent layer's projections, with little kept for backward (Chen et al., arXiv 1604.06174).

Convolutions, norms and gates are cheap and wide, so backward computes them again from what was projected; what the scan
took long for is taken from its :class:`.ScanMemory`. A few heads are computed after the others, so that less exists at
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from weitune.model.fast.recurrent.places import ScanMemory
from weitune.model.fast.self_attention.positions import Positions


class ByHeads(Protocol):
    """What lies between the projections, in G heads that have nothing to do with each other."""

    def split(self, projected: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return views (T, G, ...) that each number of what was projected is in once."""
        ...

    def compute(self, inputs: Sequence[Tensor], heads: slice, positions: Positions, memory: ScanMemory) -> Tensor:
        """Return what the output projection reads of some ``heads``, (T, g, ...), from their ``inputs`` (T, g, ...).

        Differentiable by autograd. The scan fills an empty ``memory``.
        """
        ...


def recomputed(middle: ByHeads, projected: Sequence[Tensor], positions: Positions) -> Tensor:
    """Return what the output projection reads, (T, ...). For gradients all but the scan is computed again."""
    output: Tensor = _Recomputed.apply(middle, positions, *projected)  # type: ignore[no-untyped-call]
    return output


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, middle: ByHeads, positions: Positions, *projected: Tensor) -> Tensor:
        inputs = middle.split(projected)
        ctx.middle, ctx.positions = middle, positions
        ctx.parts = _parts(inputs[0].shape[1], positions.packed.heads_at_once)
        ctx.memories = [ScanMemory() for _ in ctx.parts]
        ctx.save_for_backward(*projected)
        outputs = [
            middle.compute([each[:, heads] for each in inputs], heads, positions, memory)
            for heads, memory in zip(ctx.parts, ctx.memories, strict=True)
        ]
        return torch.cat(outputs, dim=1).flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        middle: ByHeads = ctx.middle
        inputs, grad = middle.split(ctx.saved_tensors), grads[0].unflatten(1, (ctx.parts[-1].stop, -1))
        grads_projected = [torch.empty_like(each) for each in ctx.saved_tensors]
        grads_inputs = middle.split(grads_projected)
        for heads, memory in zip(ctx.parts, ctx.memories, strict=True):
            leaves = [each[:, heads].detach().requires_grad_() for each in inputs]
            with torch.enable_grad():
                output = middle.compute(leaves, heads, ctx.positions, memory)
            computed = torch.autograd.grad(output, leaves, grad[:, heads])
            for whole, part in zip(grads_inputs, computed, strict=True):
                whole[:, heads] = part
        return None, None, *grads_projected


def _parts(count: int, at_once: int) -> list[slice]:
    """Return the slices of ``count`` heads that are computed ``at_once``."""
    return [slice(start, min(start + at_once, count)) for start in range(0, count, at_once)]
