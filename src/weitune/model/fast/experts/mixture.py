"""The channel mixer of a block with experts: routed experts, and the shared ones that are added to them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from weitune.model.fast.experts.matrices import read_adapters
from weitune.model.fast.experts.routed import RoutedExperts
from weitune.model.fast.parts import BlockContext, Mixer, MixerPass
from weitune.model.fast.projection import LoraGroup


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """Routed experts plus shared ones, which every token goes through."""

    module: Any
    """The mixture's own module; its ``experts`` are the routed ones, perhaps in PEFT's layers"""
    routed: RoutedExperts
    shared: Sequence[Mixer] = ()
    mixes_tokens: bool = False
    carried: Sequence[Hashable] = ()

    @property
    def groups(self) -> list[LoraGroup]:
        return [group for mixer in self.shared for group in mixer.groups]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self.routed.parameters + [parameter for mixer in self.shared for parameter in mixer.parameters]

    def begin(self, context: BlockContext) -> MixturePass:
        return MixturePass([self.routed.begin(context), *(mixer.begin(context) for mixer in self.shared)])

    def reference(self, x: Tensor, context: BlockContext) -> Tensor:
        output = self.routed.reference(x)
        for mixer in self.shared:
            output = output + mixer.reference(x, context)
        return output

    def with_adapters(self) -> Mixture | None:
        routed = read_adapters(self.module.experts, self.routed.gate_up, self.routed.down)
        shared = [mixer.with_adapters() for mixer in self.shared]
        plain = [mixer for mixer in shared if mixer is not None]
        if routed is None or len(plain) < len(shared):
            return None
        gate_up, down = routed
        return replace(self, routed=replace(self.routed, gate_up=gate_up, down=down), shared=plain)


@dataclass(frozen=True, slots=True, eq=False)
class MixturePass:
    """A mixture in one pass: the passes of its parts."""

    parts: Sequence[MixerPass]

    def forward(self, x: Tensor, base: Tensor | None, rows: Tensor | None = None) -> tuple[Tensor, list[Any]]:
        output, saved = self.parts[0].forward(x, base, rows)
        kept = [saved]
        for part in self.parts[1:]:
            output, saved = part.forward(x, output, rows)
            kept.append(saved)
        return output, kept

    def backward(
        self, grad: Tensor, x: Tensor, saved: list[Any], *, retain: bool, needs_input: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        total, grads = self.parts[0].backward(grad, x, saved[0], retain=retain, needs_input=needs_input)
        for part, kept in zip(self.parts[1:], saved[1:], strict=True):
            grad_x, more = part.backward(grad, x, kept, retain=retain, needs_input=needs_input)
            total = grad_x if total is None or grad_x is None else total.add_(grad_x)
            grads = grads + more
        return total, grads
