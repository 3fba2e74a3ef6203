"""Cross entropy of the predictions without all of their logits in memory at once.

The logits (N, V), with V = 151,936 for Qwen2.5, would be the largest tensor of a step. Here the output head computes
``CHUNK_LOGITS`` of them at a time, and because the loss is a scalar, the gradient of the hidden states is computed in
the same pass, before the chunk is freed (the idea of Liger's fused linear cross entropy, arXiv 2410.10989). Cost: two
matrix products of N·C·V, one for the logits and one for the gradient. The head is frozen.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.model.fast.matmul import linear_by_rows, round_rows, times_by_rows
from weitune.model.storage.allocator import empty_outside_heap

CHUNK_LOGITS = 1 << 26
"""The most logits in memory at once: 64 Mi numbers, 256 MiB in float32."""


def reference_loss(hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of cross entropies: the specification of :func:`supervised_loss` in three lines."""
    logits = F.linear(hidden, head, bias).to(torch.promote_types(hidden.dtype, torch.float32))
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (losses * weights).sum()


def supervised_loss(
    hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, max_logits: int = CHUNK_LOGITS
) -> Tensor:
    """Return the weighted sum of cross entropies of the predictions.

    ``hidden`` (N, C) are the states that predict, ``head`` (V, C) and ``bias`` (V,) the frozen output layer,
    ``targets`` (N,) and ``weights`` (N,) the tokens to predict and how much each counts. The result is a float32
    scalar; differentiable once, with respect to ``hidden`` only.
    """
    loss: Tensor = _SupervisedLoss.apply(hidden, head, bias, targets, weights, max_logits)  # type: ignore[no-untyped-call]
    return loss


class _SupervisedLoss(torch.autograd.Function):
    """Forward computes the gradient too, chunk by chunk; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, max_logits: int
    ) -> Tensor:
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        step = _chunk_rows(hidden, max(1, max_logits // head.shape[0]))
        with empty_outside_heap(step, head.shape[0], hidden) as product:  # the one large tensor
            for start in range(0, hidden.shape[0], max(step, 1)):
                part = slice(start, start + step)
                target, weight = targets[part, None], weights[part].to(exact)
                logits = linear_by_rows(hidden[part], head, bias, out=product[: len(target)]).to(exact)
                log_probs = torch.log_softmax(logits, dim=-1, out=logits)
                total -= (log_probs.gather(1, target).squeeze(1) * weight).sum()
                if grad_hidden is not None:
                    # d loss / d logits = weight · (softmax − one-hot)
                    grad = log_probs.exp_().scatter_add_(1, target, torch.full_like(target, -1, dtype=exact))
                    times_by_rows(grad.to(hidden.dtype), head, largest=target, out=grad_hidden[part])
                    grad_hidden[part].mul_(weight[:, None])
        ctx.save_for_backward(grad_hidden)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_hidden,) = ctx.saved_tensors
        grad = grad_hidden * grads[0].to(grad_hidden.dtype) if grad_hidden is not None else None
        return grad, None, None, None, None, None


def _chunk_rows(hidden: Tensor, most: int) -> int:
    """Return the rows of a chunk: at most ``most``, and about the same for all chunks."""
    unit = round_rows(hidden.device.type, hidden.dtype)
    unit = unit if most >= unit else 1
    chunks = max(1, -(-len(hidden) // (most // unit * unit)))
    return -(-len(hidden) // (chunks * unit)) * unit
