"""A mixer of tokens that carries a state: projections, what lies between them, and the output projection.

    x ─ projections ─ [convolution along the path, recurrence, gate] ─ output projection ─▶

What is in brackets is differentiated by autograd, as that of attention is, and its own weights are frozen.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from weitune.model.fast.lora_forward import GroupPass, reference_group
from weitune.model.fast.parts import BlockContext
from weitune.model.fast.projection import LoraGroup, read_group
from weitune.model.fast.self_attention.attend import AttendingPass, Middle
from weitune.model.fast.self_attention.mixer import AttentionPass
from weitune.model.fast.self_attention.observe import Rows, agree
from weitune.model.fast.self_attention.positions import Positions
from weitune.model.fast.stand_in import UNSUITABLE
from weitune.model.fast.tree import Tree


@dataclass(frozen=True, slots=True, eq=False)
class Recurrence:
    """The recurrent layer that a module is."""

    module: nn.Module
    """The layer's own module"""
    names: tuple[Sequence[str], str]
    """of the projections that read the input, and of that of the output"""
    inputs: LoraGroup
    output: LoraGroup
    middle: Middle
    mixes_tokens: bool = True
    carried: Sequence[Hashable] = ()

    @property
    def groups(self) -> tuple[LoraGroup, ...]:
        return self.inputs, self.output

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self.inputs.parameters + self.output.parameters

    def begin(self, context: BlockContext) -> AttentionPass:
        inputs, output = (GroupPass.begin(group, context.dropout) for group in self.groups)
        return AttentionPass(inputs, AttendingPass(self.middle, output, context.attention))

    def reference(self, x: Tensor, context: BlockContext) -> Tensor:
        between = self.middle(reference_group(self.inputs, x, context.dropout), context.attention)
        (output,) = reference_group(self.output, between, context.dropout)
        return output

    def with_adapters(self) -> Recurrence | None:
        names, name = self.names
        inputs, output = read_group(self.module, names), read_group(self.module, (name,))
        return replace(self, inputs=inputs, output=output) if inputs and output else None


def read_recurrence(
    module: Any, inputs: Sequence[str], output: str, middles: Sequence[Middle], rows: Rows
) -> Recurrence | None:
    """Return the layer that ``module`` is if one of ``middles`` is what it does between the projections of these names.

    The first module of each kind is called, with ``rows``.
    """
    input_group, output_group = read_group(module, inputs), read_group(module, (output,))
    if input_group is None or output_group is None:
        return None
    read = [Recurrence(module, (tuple(inputs), output), input_group, output_group, middle) for middle in middles]
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
