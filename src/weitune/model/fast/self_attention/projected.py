"""A mixer of tokens between projections: some read the input, one makes the output.

    x ─ projections ─ [attention, or a recurrence] ─ output projection ─▶

What is in brackets, the middle, is differentiated by autograd. Between forward and backward the pass keeps what was
projected, what autograd keeps of the middle, and the adapters' low-rank states.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from weitune.model.fast.lora_forward import GroupPass, reference_group
from weitune.model.fast.parts import BlockContext
from weitune.model.fast.projection import LoraGroup, read_group
from weitune.model.fast.self_attention.attend import Attended, AttendingPass, Middle


@dataclass(frozen=True, slots=True, eq=False)
class ProjectedMixer:
    """What a module of one layer computes."""

    module: nn.Module
    """The layer's own module"""
    names: tuple[Sequence[str], Sequence[str]]
    """of the projections that read the input, and of that of the output"""
    inputs: LoraGroup
    output: LoraGroup
    middle: Middle
    mixes_tokens: bool = True
    carried: Sequence[Hashable] = ()
    """The names of what the middle is given besides what was projected"""

    @property
    def groups(self) -> tuple[LoraGroup, ...]:
        return self.inputs, self.output

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self.inputs.parameters + self.output.parameters

    def begin(self, context: BlockContext) -> ProjectedPass:
        inputs, output = (GroupPass.begin(group, context.dropout) for group in self.groups)
        given = [context.carried[name].detach() for name in self.carried]
        return ProjectedPass(inputs, AttendingPass(self.middle, output, context.attention), given)

    def reference(self, x: Tensor, context: BlockContext) -> Tensor:
        projected = reference_group(self.inputs, x, context.dropout)
        projected += [context.carried[name] for name in self.carried]
        (output,) = reference_group(self.output, self.middle(projected, context.attention), context.dropout)
        return output

    def with_adapters(self) -> ProjectedMixer | None:
        inputs, output = (read_group(self.module, names) for names in self.names)
        return replace(self, inputs=inputs, output=output) if inputs and output else None


@dataclass(frozen=True, slots=True, eq=False)
class ProjectedPass:
    """Such a mixer in one pass."""

    inputs: GroupPass
    attending: AttendingPass
    given: Sequence[Tensor]
    """what the middle is given besides"""

    def forward(self, x: Tensor, base: Tensor | None, rows: Tensor | None) -> tuple[Tensor, _Saved]:
        projected, low_inputs = self.inputs.forward(x)
        output, attended = self.attending.forward([*projected, *(each.detach() for each in self.given)], base, rows)
        return output, _Saved(low_inputs, attended)

    def backward(
        self, grad: Tensor, x: Tensor, saved: _Saved, *, retain: bool, needs_input: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        grads, output_grads = self.attending.backward(grad, saved.attended, retain=retain)
        given_grads = [grads.pop() for _ in self.given][::-1]
        if not needs_input:
            input_grads = self.inputs.backward_to_adapters(grads, saved.low_inputs, x)
            return None, given_grads + input_grads + output_grads
        grad_x, input_grads = self.inputs.backward(grads, saved.low_inputs, x)
        return grad_x, given_grads + input_grads + output_grads


@dataclass(slots=True, eq=False)
class _Saved:
    low_inputs: Tensor | None
    attended: Attended
