"""Cross entropy of the predictions without all of their logits in memory at once.

The logits (U, V), with V = 151,936 for Qwen2.5, would be the largest tensor of a step. Here the output head computes
a chunk of them at a time, and the gradient of a hidden state is computed in the same pass, before the chunk is freed
(the idea of Liger's fused linear cross entropy, arXiv 2410.10989). Cost: two matrix products of U·C·V, one for the
logits and one for the gradient. The head is frozen.

    :func:`supervised_loss`   the weighted sum of predictions, a scalar, of one row of logits for each state
    :func:`log_probs`         one number for each prediction: rows of the gradient are weighted in backward

A state may predict several tokens: at a fork of the prefix tree, or as another model does (distillation, arXiv
1503.02531). What the probabilities named leave of 1 is then due to :data:`.OTHERS`, all other tokens together.

Models may scale their logits, and bend them below a cap (Gemma 2, arXiv 2408.00118): see :class:`LogitForm`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.data.conversation import OTHERS
from weitune.model.fast.matmul import by_onednn, linear_by_rows, round_rows, times_by_rows
from weitune.model.storage.allocator import empty_outside_heap

CHUNK_LOGITS = {2: 1 << 26, 4: 1 << 25, 8: 1 << 24}
"""The most logits of a chunk, by the bytes of a number: 128 MiB."""
BLOCK_LOGITS = 1 << 22
"""Logits of which float32 copies are differentiated at once on a CPU, or if they have a cap."""
_TINY = 1e-30
"""In place of 0 where it is divided by, or its logarithm is taken."""


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


class Predictions(NamedTuple):
    """N predictions that U states make."""

    states: Tensor
    """(N,) the number of the state, ascending"""
    targets: Tensor
    """(N,) the token to predict, or :data:`.OTHERS`; a pair of state and target occurs once"""
    weights: Tensor
    """(N,) how much each counts; 0 for padding"""
    others: bool = False
    """Whether a target is :data:`.OTHERS`"""

    def totals(self, states: int, dtype: torch.dtype) -> Tensor:
        """Return the sum of the weights of each state, (U,), added in one order on every device."""
        ends = torch.searchsorted(self.states, torch.arange(states + 1, device=self.states.device))
        return torch.segment_reduce(self.weights.to(dtype), "sum", offsets=ends, unsafe=True)

    def heaviest(self, first: int, rows: int) -> Tensor:
        """Return the token of the largest weight that each of ``rows`` states predicts, (rows, 1); 0 if it has none."""
        row = self.states - first
        named = (row >= 0) & (row < rows) & (self.targets != OTHERS)
        at = torch.where(named, row, 0)
        most = self.weights.new_zeros(rows).scatter_reduce_(0, at, torch.where(named, self.weights, 0), "amax")
        tokens = torch.where(named & (self.weights == most[at]), self.targets, 0)
        return self.targets.new_zeros(rows).scatter_reduce_(0, at, tokens, "amax")[:, None]


def reference_log_probs(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Return the log-probabilities of the targets, (N,): the specification of :func:`log_probs`."""
    return -F.cross_entropy(_reference_logits(hidden, head), targets, reduction="none")


def reference_loss(hidden: Tensor, head: Head, predictions: Predictions) -> Tensor:
    """Return the weighted sum of cross entropies: the specification of :func:`supervised_loss`."""
    return loss_of_logits(_reference_logits(hidden, head), predictions)


def _reference_logits(hidden: Tensor, head: Head) -> Tensor:
    products = F.linear(hidden, head.weight, head.bias).to(torch.promote_types(hidden.dtype, torch.float32))
    return head.form.logits(products)


def loss_of_logits(logits: Tensor, predictions: Predictions) -> Tensor:
    """Return the weighted sum of cross entropies of ``logits`` (U, V); differentiable by autograd."""
    states, targets, weights, others = predictions
    exact = torch.promote_types(logits.dtype, torch.float32)
    logs = F.log_softmax(logits, dim=-1, dtype=exact)
    found = logs[states, targets.clamp(min=0)]
    if others:
        named = ((targets != OTHERS) & (weights != 0)).to(exact)
        is_named = torch.zeros_like(logs).index_put_((states, targets.clamp(min=0)), named, accumulate=True) > 0
        rest = logs.masked_fill(is_named, -torch.inf).logsumexp(-1)
        found = torch.where(targets == OTHERS, rest[states], found)
    return -(found * weights.to(exact)).sum()


def supervised_loss(hidden: Tensor, head: Head, predictions: Predictions, max_logits: int | None = None) -> Tensor:
    """Return the weighted sum of cross entropies of the predictions, as :func:`loss_of_logits` defines it.

    ``hidden`` (U, C) are the states. The result is a float32 scalar; differentiable once, with respect to ``hidden``.
    """
    loss: Tensor = _SupervisedLoss.apply(hidden, head, predictions, max_logits)  # type: ignore[no-untyped-call]
    return loss


def log_probs(hidden: Tensor, head: Head, targets: Tensor, max_logits: int | None = None) -> Tensor:
    """Return the log-probability of every target, (N,) in float32; differentiable once, with respect to ``hidden``.

    ``hidden`` (N, C) has a row for each prediction. Any loss can be made of them: what the gradient of a prediction is
    multiplied with is only known in backward, but its direction is the same for every loss.
    """
    found: Tensor = _LogProbs.apply(hidden, head, targets, max_logits)  # type: ignore[no-untyped-call]
    return found


class _SupervisedLoss(torch.autograd.Function):
    """Forward computes the gradient too, chunk by chunk; backward only scales it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, predictions: Predictions, max_logits: int | None) -> Tensor:
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        totals = predictions.totals(len(hidden), exact)
        for part, products in _chunks(hidden, head, max_logits):
            for rows, logs in _log_prob_blocks(products, head.form, overwritten=grad_hidden is not None):
                aimed = _Aimed(predictions, totals, part.start + rows.start, logs)
                total -= aimed.log_prob() if grad_hidden is None else aimed.write_grad()
                del logs, aimed  # before the next are made
            if grad_hidden is not None:
                onednn = by_onednn(hidden.device.type, hidden.dtype)
                largest = predictions.heaviest(part.start, len(products)) if onednn else None
                times_by_rows(products, head.weight, largest=largest, out=grad_hidden[part])
                grad_hidden[part].mul_((totals[part] * head.form.scale)[:, None])
        ctx.save_for_backward(grad_hidden)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_hidden,) = ctx.saved_tensors
        return None if grad_hidden is None else grad_hidden * grads[0].to(grad_hidden.dtype), None, None, None


class _Aimed:
    """What R states from number ``first`` on predict, and their log-probabilities ``logs`` (R, V).

    All N predictions take part in every sum, those of other states with weight 0, so that no device must wait.
    """

    def __init__(self, predictions: Predictions, totals: Tensor, first: int, logs: Tensor) -> None:
        states, targets, weights, others = predictions
        rows, words = logs.shape
        row, weights = states - first, weights.to(logs.dtype)
        own = (row >= 0) & (row < rows)
        named = own & (targets != OTHERS)
        self._logs, self._flat = logs, logs.view(-1)
        self._at = torch.where(named, row * words + targets, 0)
        self._weights = torch.where(named, weights, 0)
        self._shares = self._weights / totals[states].clamp(min=_TINY)
        self._rest: Tensor | None = None
        if others:
            rest = torch.where(own & ~named, weights, 0)
            self._rest = logs.new_zeros(rows).scatter_add_(0, torch.where(own, row, 0), rest)
            self._rest_shares = self._rest / totals[first : first + rows].clamp(min=_TINY)

    def log_prob(self) -> Tensor:
        """Return the weighted sum of the predictions' log-probabilities."""
        found = self._log_prob_of_named()
        if self._rest is None:
            return found
        return found + (self._rest * self._without_named(self._logs.exp())[0].log()).sum()

    def write_grad(self) -> Tensor:
        """Return the weighted sum of the predictions' log-probabilities.

        Overwrite all with its gradient, negated and divided by the state's weight: softmax − share of a named token,
        and of any other softmax · (1 − share of the others / softmax of the others).
        """
        found = self._log_prob_of_named()
        softmax = self._logs.exp_()
        if self._rest is not None:
            others, named = self._without_named(softmax)
            found = found + (self._rest * others.log()).sum()
            softmax.mul_((1 - self._rest_shares / others)[:, None])
            self._flat.scatter_add_(0, self._at, named)
        self._flat.scatter_add_(0, self._at, -self._shares)
        return found

    def _log_prob_of_named(self) -> Tensor:
        return torch.where(self._weights != 0, self._weights * self._flat[self._at], 0).sum()

    def _without_named(self, softmax: Tensor) -> tuple[Tensor, Tensor]:
        """Set named tokens in ``softmax`` to 0; return the sums of what is left, (R,), and what was there, (N,)."""
        flat = softmax.view(-1)
        named = torch.where(self._weights != 0, flat[self._at], 0)
        flat.scatter_add_(0, self._at, -named)
        return softmax.sum(-1).clamp_(min=_TINY), named


class _LogProbs(torch.autograd.Function):
    """Forward computes the gradient of each prediction too, chunk by chunk; backward scales each row of it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, targets: Tensor, max_logits: int | None) -> Tensor:
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        exact = torch.promote_types(hidden.dtype, torch.float32)
        result = torch.empty(len(hidden), dtype=exact, device=hidden.device)
        for part, products in _chunks(hidden, head, max_logits):
            target = targets[part, None]
            for rows, logs in _log_prob_blocks(products, head.form, overwritten=grad_hidden is not None):
                aimed = target[rows]
                result[part][rows] = logs.gather(1, aimed).squeeze(1)
                if grad_hidden is not None:
                    logs.exp_().scatter_add_(1, aimed, torch.full_like(aimed, -1, dtype=exact))
                del logs  # before the next are made
            if grad_hidden is not None:
                times_by_rows(products, head.weight, largest=target, out=grad_hidden[part])
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


def _chunks(hidden: Tensor, head: Head, max_logits: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield the place of some of the states (U, C), and their products with the output layer, (R, V), to overwrite."""
    weight, bias, _ = head
    step = _chunk_rows(hidden, max(1, (max_logits or CHUNK_LOGITS[hidden.element_size()]) // weight.shape[0]))
    with empty_outside_heap(step, weight.shape[0], hidden) as product:  # the one large tensor
        for start in range(0, hidden.shape[0], max(step, 1)):
            part = slice(start, start + step)
            yield part, linear_by_rows(hidden[part], weight, bias, out=product[: len(hidden[part])])


def _log_prob_blocks(products: Tensor, form: LogitForm, *, overwritten: bool) -> Iterator[tuple[slice, Tensor]]:
    """Yield some rows at a time, and their log-probabilities, of logits of this ``form`` of ``products`` (R, V).

    If what is yielded is ``overwritten`` with the gradient of the logits, up to ``form.scale``, the gradient of the
    products replaces them: with a cap, that of the logits times the slope 1 − (logit / cap)².
    """
    exact = torch.promote_types(products.dtype, torch.float32)
    cap = form.cap if overwritten else None
    some = max(torch.get_num_threads(), BLOCK_LOGITS // products.shape[1])
    step = some if cap is not None or products.device.type == "cpu" else max(1, len(products))
    for start in range(0, len(products), step):
        rows = slice(start, start + step)
        logits = form.write_logits(products[rows].to(exact))
        slopes = None if cap is None else 1 - (logits / cap).square_()
        yield rows, torch.log_softmax(logits, dim=-1, out=logits)
        if slopes is not None:
            logits.mul_(slopes)
        if overwritten and exact != products.dtype:
            products[rows].copy_(logits)
        del logits, slopes


def _chunk_rows(hidden: Tensor, most: int) -> int:
    """Return the rows of a chunk: at most ``most``, and about the same for all chunks."""
    unit = round_rows(hidden.device.type, hidden.dtype)
    unit = unit if most >= unit else 1
    chunks = max(1, -(-len(hidden) // (most // unit * unit)))
    return -(-len(hidden) // (chunks * unit)) * unit
