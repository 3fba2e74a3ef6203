"""A mixer of tokens that carries a state.

x ─ projections ─ [convolution along the path, recurrence, gate] ─ output projection ─▶
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from weitune.model.fast.parts import BlockContext
from weitune.model.fast.projection import read_group
from weitune.model.fast.self_attention.attend import Middle
from weitune.model.fast.self_attention.observe import Rows, agree
from weitune.model.fast.self_attention.positions import Positions
from weitune.model.fast.self_attention.projected import ProjectedMixer
from weitune.model.fast.stand_in import UNSUITABLE
from weitune.model.fast.tree import Tree


class Recurrence(ProjectedMixer):
    """The recurrent layer that a module is. Its own weights are frozen."""

    __slots__ = ()


def read_recurrence(
    module: Any, inputs: Sequence[str], output: str, middles: Sequence[Middle], rows: Rows
) -> Recurrence | None:
    """Return the layer that ``module`` is if one of ``middles`` is what it does between the projections of these names.

    The first module of each kind is called, with ``rows``.
    """
    input_group, output_group = read_group(module, inputs), read_group(module, (output,))
    if input_group is None or output_group is None:
        return None
    read = [Recurrence(module, (tuple(inputs), (output,)), input_group, output_group, middle) for middle in middles]
    found: int | None = rows.once("recurrence", module, lambda: _agreeing(read, rows))
    return None if found is None else read[found]


def _agreeing(read: Sequence[Recurrence], rows: Rows) -> int | None:
    """Return which of ``read`` computes what its module computes of ``rows`` as one conversation."""
    line = torch.arange(rows.hidden.shape[1], device=rows.hidden.device)
    positions = Positions({}, Tree(line, torch.full_like(line, len(line)), chunk_tokens=2))

    def agrees(recurrence: Recurrence) -> bool:
        try:
            with torch.no_grad():
                ours = recurrence.reference(rows.hidden[0], BlockContext(positions, None))
                return agree(ours, recurrence.module(rows.hidden)[0])
        except UNSUITABLE:
            return False

    return next((at for at, each in enumerate(read) if agrees(each)), None)
