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

from weitune.model.fast.matmul import add_times, by_onednn, linear, round_rows
from weitune.model.storage.allocator import unwritten_apart

CHUNK_LOGITS = 1 << 26
"""Logits held at once, at most: 64 Mi numbers, 256 MiB in float32."""
HEAD_ROWS = 512, 2048
"""Rows of the head that are multiplied at once on a CPU, which is faster than all at once; the second by oneDNN."""


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

    ``hidden`` (N, C) are the states that predict, ``head`` (V, C) and ``bias`` (V,) the frozen output layer,
    ``targets`` (N,) and ``weights`` (N,) the tokens to predict and how much each counts. The result is a float32
    scalar; differentiable once, with respect to ``hidden`` only.
    """
    loss: Tensor = _SupervisedLoss.apply(hidden, head, bias, targets, weights, chunk_logits)  # type: ignore[no-untyped-call]
    return loss


class _SupervisedLoss(torch.autograd.Function):
    """Forward computes the gradient too, chunk by chunk; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        chunk_logits: int,
    ) -> Tensor:
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        step = _chunk_rows(hidden, max(1, chunk_logits // head.shape[0]))
        with unwritten_apart(step, head.shape[0], hidden) as product:  # the one large tensor
            for start in range(0, hidden.shape[0], max(step, 1)):
                part = slice(start, start + step)
                logits = _logits(hidden[part], head, bias, product[: len(targets[part])]).to(exact)
                logs = torch.log_softmax(logits, dim=-1, out=logits)
                target, weight = targets[part, None], weights[part].to(exact)
                total -= (logs.gather(1, target).squeeze(1) * weight).sum()
                if gradient is not None:
                    # d loss / d logits = weight · (softmax − one-hot)
                    slope = logs.exp_().scatter_add_(1, target, torch.full_like(target, -1, dtype=exact))
                    _times_head(slope.to(hidden.dtype), target, head, out=gradient[part])
                    gradient[part].mul_(weight[:, None])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0].to(gradient.dtype) if gradient is not None else None, None, None, None, None, None)


def _chunk_rows(hidden: Tensor, most: int) -> int:
    """Return how many of the states, at most ``most``, go through the head at once: for few, products are slow."""
    unit = round_rows(hidden.device.type, hidden.dtype)
    unit = unit if most >= unit else 1
    chunks = max(1, -(-len(hidden) // (most // unit * unit)))
    return -(-len(hidden) // (chunks * unit)) * unit


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """Write hidden · headᵀ + bias to ``out`` and return it."""
    ours = by_onednn(hidden.device.type, hidden.dtype)
    step = HEAD_ROWS[ours] if hidden.device.type == "cpu" else head.shape[0]
    for start in range(0, head.shape[0], step):
        part = slice(start, start + step)
        rows = head[part].to(hidden.dtype)
        if ours:
            out[:, part] = linear(hidden, rows)
        else:
            torch.mm(hidden, rows.T, out=out[:, part])
    return out if bias is None else out.add_(bias.to(out.dtype))


def _times_head(slope: Tensor, target: Tensor, head: Tensor, out: Tensor) -> None:
    """Write slope · head to ``out``; a head stored in another format is widened a few rows at a time.

    ``slope`` (N, V) is used up. oneDNN adds as many numbers one after the other as it gets rows of the head, so the
    row of ``target`` (N, 1), the largest as a rule, comes last: after it every number would be rounded as coarsely.
    """
    ours = by_onednn(slope.device.type, slope.dtype)
    if head.dtype == slope.dtype and not ours:
        torch.mm(slope, head, out=out)
        return
    if ours:
        largest = slope.gather(1, target)
        slope.scatter_(1, target, 0)
    out.zero_()
    for start in range(0, head.shape[0], HEAD_ROWS[ours]):
        part = slice(start, start + HEAD_ROWS[ours])
        add_times(out, slope[:, part], head[part].to(slope.dtype))
    if ours:
        out.addcmul_(largest, head[target.squeeze(1)].to(slope.dtype))
