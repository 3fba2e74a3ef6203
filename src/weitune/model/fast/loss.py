"""Cross entropy of the predictions without all of their logits in memory at once.

The logits (N, V), with V = 151,936 for Qwen2.5, would be the largest tensor of a step. Here the output head computes
``CHUNK_LOGITS`` of them at a time, and because each prediction is one number, the gradient of its hidden state is
computed in the same pass, before the chunk is freed (the idea of Liger's fused linear cross entropy, arXiv 2410.10989).
Cost: two matrix products of N·C·V, one for the logits and one for the gradient. The head is frozen.

    :func:`supervised_loss`   the weighted sum, a scalar: rows of the gradient are weighted in forward
    :func:`log_probs`         one number for each prediction: rows of the gradient are weighted in backward

Models may scale their logits, and bend them below a cap (Gemma 2, arXiv 2408.00118): see :class:`LogitForm`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.model.fast.matmul import linear_by_rows, round_rows, times_by_rows
from weitune.model.storage.allocator import empty_outside_heap

CHUNK_LOGITS = 1 << 26
"""The most logits in memory at once: 64 Mi numbers, 256 MiB in float32."""
_CAPPED_LOGITS = 1 << 22
"""Logits whose cap is differentiated at once."""


@dataclass(frozen=True, slots=True)
class LogitForm:
    """What a model makes of the products W x + b of its output layer: logits = cap · tanh(scale · (W x + b) / cap)."""

    scale: float = 1.0
    cap: float | None = None
    """None: logits = scale · (W x + b)"""

    def logits(self, products: Tensor) -> Tensor:
        """Return the logits for ``products``, as models write it; differentiable by autograd."""
        logits = self.scale * products
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def write_logits(self, products: Tensor) -> Tensor:
        """Overwrite ``products`` with the logits and return it."""
        if self.cap is not None:
            return products.mul_(self.scale / self.cap).tanh_().mul_(self.cap)
        return products if self.scale == 1 else products.mul_(self.scale)


PLAIN_LOGITS = LogitForm()
"""The products themselves."""


class Head(NamedTuple):
    """The frozen output layer of a model."""

    weight: Tensor
    """(V, C)"""
    bias: Tensor | None = None
    """(V,)"""
    form: LogitForm = PLAIN_LOGITS


def reference_log_probs(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Return the log-probabilities of the targets: the specification of :func:`log_probs` in three lines."""
    products = F.linear(hidden, head.weight, head.bias).to(torch.promote_types(hidden.dtype, torch.float32))
    losses = F.cross_entropy(head.form.logits(products), targets, reduction="none")
    return -losses


def reference_loss(hidden: Tensor, head: Head, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of cross entropies: the specification of :func:`supervised_loss`."""
    return -(reference_log_probs(hidden, head, targets) * weights).sum()


def supervised_loss(
    hidden: Tensor, head: Head, targets: Tensor, weights: Tensor, max_logits: int = CHUNK_LOGITS
) -> Tensor:
    """Return the weighted sum of cross entropies of the predictions.

    ``hidden`` (N, C) are the states that predict, ``targets`` (N,) and ``weights`` (N,) the tokens to predict and how
    much each counts. The result is a float32 scalar; differentiable once, with respect to ``hidden`` only.
    """
    loss: Tensor = _SupervisedLoss.apply(hidden, head, targets, weights, max_logits)  # type: ignore[no-untyped-call]
    return loss


def log_probs(hidden: Tensor, head: Head, targets: Tensor, max_logits: int = CHUNK_LOGITS) -> Tensor:
    """Return the log-probability of every target, (N,) in float32; differentiable once, with respect to ``hidden``.

    Any loss can be made of them, at the cost of :func:`supervised_loss`: what the gradient of a prediction is
    multiplied with is only known in backward, but its direction is the same for every loss.
    """
    found: Tensor = _LogProbs.apply(hidden, head, targets, max_logits)  # type: ignore[no-untyped-call]
    return found


class _SupervisedLoss(torch.autograd.Function):
    """Forward computes the gradient too, chunk by chunk; backward only scales it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, targets: Tensor, weights: Tensor, max_logits: int) -> Tensor:
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        for part, found in _chunks(hidden, head, targets, max_logits, grad_hidden):
            counts = weights[part].to(exact)
            total -= (found * counts).sum()
            if grad_hidden is not None:
                grad_hidden[part].mul_((counts * head.form.scale)[:, None])
        ctx.save_for_backward(grad_hidden)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_hidden,) = ctx.saved_tensors
        grad = grad_hidden * grads[0].to(grad_hidden.dtype) if grad_hidden is not None else None
        return grad, None, None, None, None


class _LogProbs(torch.autograd.Function):
    """Forward computes the gradient of each prediction too, chunk by chunk; backward scales each row of it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, targets: Tensor, max_logits: int) -> Tensor:
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        exact = torch.promote_types(hidden.dtype, torch.float32)
        result = torch.empty(len(hidden), dtype=exact, device=hidden.device)
        for part, found in _chunks(hidden, head, targets, max_logits, grad_hidden):
            result[part] = found
        ctx.save_for_backward(grad_hidden)
        ctx.scale = head.form.scale
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_hidden,) = ctx.saved_tensors
        if grad_hidden is None:
            return None, None, None, None
        factors = (-ctx.scale * grads[0])[:, None]
        return torch.mul(grad_hidden, factors, out=torch.empty_like(grad_hidden)), None, None, None


def _chunks(
    hidden: Tensor, head: Head, targets: Tensor, max_logits: int, grad_hidden: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield chunks of the predictions with their log-probabilities.

    The rows of ``grad_hidden`` are overwritten with the gradients of the negative log-probabilities, but for the
    form's scale.
    """
    weight, bias, form = head
    exact = torch.promote_types(hidden.dtype, torch.float32)
    step = _chunk_rows(hidden, max(1, max_logits // weight.shape[0]))
    with empty_outside_heap(step, weight.shape[0], hidden) as product:  # the one large tensor
        for start in range(0, hidden.shape[0], max(step, 1)):
            part = slice(start, start + step)
            target = targets[part, None]
            products = linear_by_rows(hidden[part], weight, bias, out=product[: len(target)]).to(exact)
            logits = form.write_logits(products)
            aimed = logits.gather(1, target)
            log_softmax = torch.log_softmax(logits, dim=-1, out=logits)
            found = log_softmax.gather(1, target)
            if grad_hidden is not None:
                _write_grad(log_softmax, target, aimed - found, form.cap)
                times_by_rows(log_softmax.to(hidden.dtype), weight, largest=target, out=grad_hidden[part])
            yield part, found.squeeze(1)


def _write_grad(log_probs: Tensor, target: Tensor, normaliser: Tensor, cap: float | None) -> None:
    """Overwrite ``log_probs`` (N, V) with the gradient of scale · (W x + b): (softmax − one-hot) · (1 − (logit/cap)²).

    The logits are what the log-probabilities were before ``normaliser`` (N, 1), the logarithm of the sum of their
    exponentials, was subtracted. So with a cap only the second factor of a few rows is in memory beside them.
    """
    rows = len(log_probs) if cap is None else max(1, _CAPPED_LOGITS // log_probs.shape[1])
    for start in range(0, len(log_probs), max(rows, 1)):
        part = slice(start, start + rows)
        grad = log_probs[part]
        squares = None if cap is None else (grad + normaliser[part]).div_(cap).square_()
        grad.exp_().scatter_add_(1, target[part], torch.full_like(target[part], -1, dtype=grad.dtype))
        if squares is not None:
            grad.addcmul_(grad, squares, value=-1)


def _chunk_rows(hidden: Tensor, most: int) -> int:
    """Return the rows of a chunk: at most ``most``, and about the same for all chunks."""
    unit = round_rows(hidden.device.type, hidden.dtype)
    unit = unit if most >= unit else 1
    chunks = max(1, -(-len(hidden) // (most // unit * unit)))
    return -(-len(hidden) // (chunks * unit)) * unit
