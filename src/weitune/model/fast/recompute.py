"""A decoder block that keeps only its input: backward runs it again (gradient checkpointing, arXiv 1604.06174).

Dropout is the same the second time, because the state of the generator that its offsets are drawn from is restored.
Cost: the block's forward pass once more; what is kept of a token falls from about ten vectors a block to one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weitune.model.fast.block import BlockContext, BlockParts, run_block


def run_recomputed(parts: BlockParts, hidden: Tensor, context: BlockContext, rows: Tensor | None = None) -> Tensor:
    """Return what :func:`.run_block` returns, keeping only ``hidden`` for backward."""
    output: Tensor = _Recomputed.apply(hidden, parts, context, rows, *parts.parameters)  # type: ignore[no-untyped-call]
    return output


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, parts: BlockParts, context: BlockContext, rows: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        ctx.parts, ctx.context, ctx.rows, ctx.generator = parts, context, rows, torch.get_rng_state()
        ctx.save_for_backward(hidden)
        return run_block(parts, hidden, context, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.saved_tensors
        parts: BlockParts = ctx.parts
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.generator)
            again = hidden.detach().requires_grad_(ctx.needs_input_grad[0])
            output = run_block(parts, again, ctx.context, ctx.rows)
        inputs = [again, *parts.parameters]
        trained = [tensor for tensor in inputs if tensor.requires_grad]
        if not trained:
            return (None,) * (4 + len(parts.parameters))
        computed = iter(torch.autograd.grad(output, trained, grads[0]))
        grad_hidden, *parameter_grads = (next(computed) if tensor.requires_grad else None for tensor in inputs)
        return grad_hidden, None, None, None, *parameter_grads
