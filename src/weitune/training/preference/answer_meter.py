"""The log-probabilities of answers, measured by all processes of a run together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from weitune.data.layout import Layout
from weitune.data.preference.reference import AnswerSums
from weitune.data.preference.values import Group
from weitune.evaluate.answers import measure_answers
from weitune.evaluate.loss import MICRO_TOKENS
from weitune.model.supervised import SupervisedModel
from weitune.progress import Progress

if TYPE_CHECKING:
    from accelerate import Accelerator

    from weitune.training.trainable import Trainable


@dataclass(frozen=True, slots=True)
class AnswerMeter:
    """A model that tells the log-probabilities of answers as it stands; no gradient, no dropout, no random number."""

    model: SupervisedModel
    layout: Layout
    """Of groups"""
    accelerator: Accelerator
    sharded: bool = False
    """Whether the base is divided among the processes, so that they must make their passes together."""
    micro_tokens: int = MICRO_TOKENS
    """Most tokens of a pass, unless a call says otherwise."""

    @classmethod
    def of(cls, trainable: Trainable, accelerator: Accelerator, micro_tokens: int) -> AnswerMeter:
        """Return the meter of a run whose steps are split into passes of ``micro_tokens``; its own are not larger."""
        model = SupervisedModel(trainable.loaded.model, head=trainable.capabilities.head, blocks=trainable.blocks)
        own = min(micro_tokens, MICRO_TOKENS)
        return cls(model, trainable.group_layout, accelerator, trainable.loaded.shards > 1, own)

    def __call__(
        self, groups: Sequence[Group], progress: Progress | None = None, micro_tokens: int | None = None
    ) -> AnswerSums:
        """Return the sums of the answers of ``groups``, the same on every process.

        All processes must call it with the same groups. These are divided and laid out as the groups of a step are, so
        with the ``micro_tokens`` of training the passes are those of that step.
        """
        micro_tokens = self.micro_tokens if micro_tokens is None else micro_tokens
        accelerator, layout, world = self.accelerator, self.layout, self.accelerator.num_processes
        distinct = list({id(group): group for group in groups}.values())
        mine = layout.share(distinct, world)[accelerator.process_index] if world > 1 else distinct
        idle: list[list[Group]] = []
        if self.sharded:
            own = len(layout.split(mine, micro_tokens))
            most = int(accelerator.gather(torch.tensor([own], device=accelerator.device)).max())
            idle = [distinct[:1]] * (most - own)
        measured = measure_answers(self.model, mine, layout, micro_tokens, accelerator.device, progress, idle)
        found = dict(zip(map(id, mine), measured, strict=True))
        parts = [found.get(id(group), [0.0] * len(group.answers)) for group in groups]
        sums = torch.tensor([value for part in parts for value in part], dtype=torch.float64)
        if world > 1:
            sums = accelerator.reduce(sums.to(accelerator.device), reduction="sum").cpu()
        return AnswerSums.of_groups(groups, sums.numpy())
