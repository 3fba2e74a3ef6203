"""A shared expert whose output is multiplied by a gate: sigmoid(w·x) · expert(x), one number for each token."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from weitune.model.fast.lora_forward import GroupPass, reference_group
from weitune.model.fast.parts import BlockContext, Mixer, MixerPass
from weitune.model.fast.projection import LoraGroup, read_group


@dataclass(frozen=True, slots=True, eq=False)
class GatedExpert:
    """A feed-forward layer that every token goes through, and its gate (Qwen2-MoE)."""

    expert: Mixer
    gate: LoraGroup
    """of one output"""
    owner: nn.Module
    """The mixture that has the gate's linear layer"""
    name: str
    """of that layer"""
    mixes_tokens: bool = False
    carried: Sequence[Hashable] = ()

    @property
    def groups(self) -> Sequence[LoraGroup]:
        return [*self.expert.groups, self.gate]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self.expert.parameters + self.gate.parameters

    def begin(self, context: BlockContext) -> GatedPass:
        return GatedPass(
            self.expert.begin(context), GroupPass.begin(self.gate, context.dropout), context.keep_feed_forward
        )

    def reference(self, x: Tensor, context: BlockContext) -> Tensor:
        output = self.expert.reference(x, context)
        (gate,) = reference_group(self.gate, x, context.dropout)
        return gate.sigmoid() * output

    def with_adapters(self) -> GatedExpert | None:
        expert, gate = self.expert.with_adapters(), read_group(self.owner, [self.name])
        return replace(self, expert=expert, gate=gate) if expert and gate else None


class _Saved(NamedTuple):
    """What forward keeps for backward."""

    expert: Any
    low: Tensor | None
    """(T, R) of the gate's adapter"""
    factor: Tensor
    """(T, 1)"""
    output: Tensor | None
    """(T, C) of the expert, unless it is to be computed again"""


@dataclass(frozen=True, slots=True, eq=False)
class GatedPass:
    """A shared expert and its gate in one pass."""

    expert: MixerPass
    gate: GroupPass
    keep_output: bool

    def forward(self, x: Tensor, base: Tensor | None, rows: Tensor | None = None) -> tuple[Tensor, _Saved]:
        output, saved = self.expert.forward(x, None, rows)
        (logits,), low = self.gate.forward(x)
        factor = logits.sigmoid()
        total = output * factor if base is None else torch.addcmul(base, output, factor)
        return total, _Saved(saved, low, factor, output if self.keep_output else None)

    def backward(
        self, grad: Tensor, x: Tensor, saved: _Saved, *, retain: bool, needs_input: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        factor = saved.factor
        output = self.expert.forward(x, None, None)[0] if saved.output is None else saved.output
        grad_logits = (grad * output).sum(1, keepdim=True).mul_(factor * (1 - factor))
        grad_x, grads = self.expert.backward(grad * factor, x, saved.expert, retain=retain, needs_input=needs_input)
        if grad_x is None:
            return None, grads + self.gate.backward_to_adapters([grad_logits], saved.low, x)
        grad_through_gate, gate_grads = self.gate.backward([grad_logits], saved.low, x)
        return grad_x.add_(grad_through_gate), grads + gate_grads
