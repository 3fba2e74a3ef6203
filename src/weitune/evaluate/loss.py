"""The loss of a model on examples that it is not trained on, computed with the layout and the head of training.

    loss = Σ weight · cross entropy / Σ weight        perplexity = e^loss

Examples that begin alike share their beginning here too, over the whole set, so this costs at most a third of a
training step over as many distinct tokens. No random number is drawn and no state changes: training that goes on
afterwards gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from weitune.data.layout import Layout
from weitune.data.preference.values import Item
from weitune.model.batch import to_tensors
from weitune.progress import Progress

MICRO_TOKENS = 1024
"""Tokens of a pass. No activations are kept, so every model that can be trained has room for it; more is not faster."""


@dataclass(frozen=True, slots=True)
class MeasuredLoss:
    """A weighted sum of cross entropies, in nats, and the sum of the weights; sums of parts can be added."""

    sum: float
    weight: float

    @property
    def mean(self) -> float:
        """The loss of a learned token, in nats."""
        return self.sum / self.weight if self.weight else math.nan

    @property
    def perplexity(self) -> float:
        """e to the power of the loss; infinity where that is too large for a float, and NaN where there is no loss."""
        return math.inf if self.mean >= 700 else math.exp(self.mean)


def measure_loss(
    model: nn.Module,
    examples: Sequence[Item],
    layout: Layout,
    micro_tokens: int,
    device: torch.device,
    progress: Progress | None = None,
    idle: Sequence[Sequence[Item]] = (),
) -> MeasuredLoss:
    """Return the loss of ``model`` (a :class:`.SupervisedModel`) on ``examples``.

    ``progress`` is called with (passes done, passes in all); if it raises, the measurement ends and the model is as it
    was. ``idle`` passes follow and do not count: other processes may need this one's part of the weights meanwhile.
    """
    total = 0.0
    batches = layout.split(examples, micro_tokens)
    with evaluating(model), torch.no_grad():
        for done, batch in enumerate(batches, 1):
            total += float(model(to_tensors(layout.lay(batch), device)).cpu().double())
            if progress is not None:
                progress(done, len(batches))
        for others in idle:
            model(to_tensors(layout.lay(others), device))
    return MeasuredLoss(total, sum(example.weight for example in examples))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off in the block, and put every module back to how it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
