"""A decoder block that keeps its input and nothing else: backward runs it again (Chen et al., arXiv 1604.06174).

Dropout is the same the second time, since the generator that its offsets are drawn from is put back. Cost: the block's
forward pass once more; what is kept of a token falls from about ten vectors a block to one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weitune.model.fast.block import BlockContext, BlockParts, run_block


def run_block_twice(parts: BlockParts, hidden: Tensor, run: BlockContext, rows: Tensor | None = None) -> Tensor:
    """Return what :func:`.run_block` returns, keeping only ``hidden`` for backward."""
    output: Tensor = _Twice.apply(hidden, parts, run, rows, *parts.parameters)  # type: ignore[no-untyped-call]
    return output


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, parts: BlockParts, run: BlockContext, rows: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        ctx.parts, ctx.run, ctx.rows, ctx.generator = parts, run, rows, torch.get_rng_state()
        ctx.save_for_backward(hidden)
        return run_block(parts, hidden, run, rows)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.saved_tensors
        parts: BlockParts = ctx.parts
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.generator)
            again = hidden.detach().requires_grad_(ctx.needs_input_grad[0])
            output = run_block(parts, again, ctx.run, ctx.rows)
        asked = [again, *parts.parameters]
        learned = [tensor for tensor in asked if tensor.requires_grad]
        if not learned:
            return (None,) * (4 + len(parts.parameters))
        found = iter(torch.autograd.grad(output, learned, slopes[0]))
        first, *others = (next(found) if tensor.requires_grad else None for tensor in asked)
        return first, None, None, None, *others
