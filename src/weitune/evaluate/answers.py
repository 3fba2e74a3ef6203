"""The log-probabilities that a model gives to answers, with the layout and the head of training.

No random number is drawn and no state changes, as for :mod:`.loss`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from weitune.data.layout import Layout
from weitune.data.preference.values import Group
from weitune.evaluate.loss import evaluating
from weitune.model.batch import to_tensors
from weitune.progress import Progress


def measure_answers(
    model: nn.Module,
    groups: Sequence[Group],
    layout: Layout,
    micro_tokens: int,
    device: torch.device,
    progress: Progress | None = None,
    idle: Sequence[Sequence[Group]] = (),
) -> list[npt.NDArray[np.float64]]:
    """Return for each of ``groups`` the summed log-probability of each of its answers, in nats.

    ``model`` is a :class:`.SupervisedModel` and ``layout`` one of groups. ``progress`` is called with (passes done,
    passes in all); if it raises, the measurement ends and the model is as it was. ``idle`` passes follow and do not
    count: other processes may need this one's part of the weights meanwhile.
    """
    found: dict[int, npt.NDArray[np.float64]] = {}
    distinct = list({id(group): group for group in groups}.values())
    batches = layout.split(distinct, micro_tokens)
    with evaluating(model), torch.no_grad():
        for done, batch in enumerate(batches, 1):
            sums = model(to_tensors(layout.lay(batch), device)).sums.double().cpu().numpy()
            ends = np.cumsum([len(group.answers) for group in batch])
            found.update(zip(map(id, batch), np.split(sums, ends[:-1]), strict=True))
            if progress is not None:
                progress(done, len(batches))
        for others in idle:
            model(to_tensors(layout.lay(others), device))
    return [found[id(group)] for group in groups]
