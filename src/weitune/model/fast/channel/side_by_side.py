"""Mixers that read the same x and are added, each between norms of its own, if it has any.

x ─┬─ norm ─ feed-forward ─ norm ─┬─ + ─▶        Gemma 4's 26B-A4B
   └─ norm ─ experts ────── norm ─┘

Granite 4 has two mixers of channels so, Falcon-H1 two mixers of tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from weitune.model.fast.parts import BlockContext, Branch, MixerPass
from weitune.model.fast.projection import LoraGroup


@dataclass(frozen=True, slots=True, eq=False)
class SideBySide:
    """The sum of ``branches``, without a residual: all mix channels, or all mix tokens."""

    branches: Sequence[Branch]
    carried: Sequence[Hashable] = ()

    @property
    def mixes_tokens(self) -> bool:
        return self.branches[0].mixer.mixes_tokens

    @property
    def groups(self) -> list[LoraGroup]:
        return [group for branch in self.branches for group in branch.mixer.groups]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for branch in self.branches for parameter in branch.mixer.parameters]

    def begin(self, context: BlockContext) -> SideBySidePass:
        return SideBySidePass([(branch, branch.mixer.begin(context)) for branch in self.branches])

    def reference(self, x: Tensor, context: BlockContext) -> Tensor:
        total = x.new_zeros(())
        for branch in self.branches:
            output = branch.mixer.reference(branch.pre.reference(x) if branch.pre else x, context)
            total = total + branch.multiplier * (branch.post.reference(output) if branch.post else output)
        return total

    def with_adapters(self) -> SideBySide | None:
        mixers = [branch.mixer.with_adapters() for branch in self.branches]
        plain = [mixer for mixer in mixers if mixer is not None]
        if len(plain) < len(mixers):
            return None
        return replace(self, branches=[replace(b, mixer=mixer) for b, mixer in zip(self.branches, plain, strict=True)])


@dataclass(slots=True, eq=False)
class _Saved:
    mixer: Any
    mixed: Tensor
    """(T, C) the mixer's output, before the norm that may follow"""
    statistics: Any


@dataclass(frozen=True, slots=True, eq=False)
class SideBySidePass:
    """The branches in one pass."""

    branches: Sequence[tuple[Branch, MixerPass]]

    def forward(self, x: Tensor, base: Tensor | None, rows: Tensor | None) -> tuple[Tensor, list[_Saved]]:
        total, kept = base, []
        for branch, mixer in self.branches:
            mixed, saved = mixer.forward(branch.pre.forward(x)[0] if branch.pre else x, None, rows)
            output, statistics = branch.post.forward(mixed) if branch.post else (mixed, None)
            output = output if branch.multiplier == 1 else output * branch.multiplier
            total = output if total is None else total + output
            kept.append(_Saved(saved, mixed, statistics))
        assert total is not None  # noqa: S101  (there are branches)
        return total, kept

    def backward(
        self, grad: Tensor, x: Tensor, saved: list[_Saved], *, retain: bool, needs_input: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        total: Tensor | None = None
        parameter_grads: list[Tensor] = []
        for (branch, mixer), kept in zip(self.branches, saved, strict=True):
            grad_output = grad if branch.multiplier == 1 else grad * branch.multiplier
            grad_mixed = branch.post.backward(grad_output, kept.mixed, kept.statistics) if branch.post else grad_output
            y, statistics = branch.pre.forward(x) if branch.pre else (x, None)
            grad_x, grads = mixer.backward(grad_mixed, y, kept.mixer, retain=retain, needs_input=needs_input)
            parameter_grads += grads
            if needs_input and grad_x is not None:
                grad_x = branch.pre.backward(grad_x, x, statistics) if branch.pre else grad_x
                total = grad_x if total is None else total.add_(grad_x)
        return total, parameter_grads
