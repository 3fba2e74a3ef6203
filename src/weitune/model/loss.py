"""Cross entropy at supervised rows, without ever holding all their logits.

A row of logits is V numbers: 151,936 for Qwen2.5, the largest tensor of a naive step. Here the output head runs over
``CHUNK_LOGITS`` numbers at a time, and since the loss is a scalar, the gradient with respect to the hidden states is
computed in the same pass: logits are made once, used, and forgotten (the idea of Liger's fused linear cross entropy,
arXiv 2410.10989). Cost: two matrix products of N·C·V, one for the logits and one for the gradient; the head is frozen.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_LOGITS = 1 << 25
"""Logits held at once: 32 Mi numbers, 128 MiB in float32."""


def reference_loss(hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of cross entropies: the specification of :func:`supervised_loss` in three lines."""
    logits = F.linear(hidden, head, bias).to(torch.promote_types(hidden.dtype, torch.float32))
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (losses * weights).sum()


def supervised_loss(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    chunk_logits: int = CHUNK_LOGITS,
) -> Tensor:
    """Return the weighted sum of cross entropies of the predictions.

    ``hidden`` (N, C) are the states that predict, ``head`` (V, C) and ``bias`` (V,) the frozen output layer, ``targets``
    (N,) and ``weights`` (N,) the tokens to predict and how much each counts. The result is a float32 scalar;
    differentiable once, with respect to ``hidden`` only.
    """
    loss: Tensor = _SupervisedLoss.apply(hidden, head, bias, targets, weights, chunk_logits)
    return loss


class _SupervisedLoss(torch.autograd.Function):
    """Forward computes the gradient too, chunk by chunk; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, chunk_logits: int
    ) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needs_gradient else None
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        step = max(1, chunk_logits // head.shape[0])
        for start in range(0, hidden.shape[0], step):
            part = slice(start, start + step)
            logits = F.linear(hidden[part], head, bias).to(exact)
            target, weight = targets[part, None], weights[part].to(exact)
            normaliser = logits.logsumexp(dim=-1)
            total += ((normaliser - logits.gather(1, target).squeeze(1)) * weight).sum()
            if gradient is not None:
                # d loss / d logits = weight · (softmax − one-hot)
                slope = logits.sub_(normaliser[:, None]).exp_().mul_(weight[:, None])
                slope.scatter_add_(1, target, -weight[:, None])
                torch.mm(slope.to(head.dtype), head, out=gradient[part])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0].to(gradient.dtype) if gradient is not None else None, None, None, None, None, None)
