"""Softmax attention as a mixer of tokens: projections, what lies between them, and the output projection.

    x ─ q,k,v ─ [norms of heads, rotary embedding, attention] ─ o ─▶

What is in brackets is differentiated by autograd (:class:`.Heads`). Between forward and backward the pass keeps q, k
and v, what autograd keeps of attention, and the adapters' low-rank states.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from weitune.model.fast.lora_forward import GroupPass, reference_group
from weitune.model.fast.parts import BlockContext
from weitune.model.fast.projection import LoraGroup, read_group
from weitune.model.fast.self_attention.attend import Attended, AttendingPass
from weitune.model.fast.self_attention.heads import GATES, Heads, read_heads
from weitune.model.fast.self_attention.observe import Rows, observe
from weitune.model.fast.self_attention.positions import shared_names

_INPUTS = ("q_proj", "k_proj", "v_proj"), ("qkv_proj",)
_OUTPUTS = "o_proj", "out_proj", "dense"


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """The attention of one layer."""

    module: nn.Module
    """The layer's own module"""
    names: tuple[Sequence[str], Sequence[str]]
    """of the projections that read the input, and of that of the output"""
    inputs: LoraGroup
    """q, k and v"""
    output: LoraGroup
    heads: Heads
    """From q (T, H·D), k and v (T, G·D) to (T, H·D)"""
    mixes_tokens: bool = True
    carried: Sequence[Hashable] = ()
    """The names of keys and values (1, G, T, D) that are given instead of k and v"""
    shares_keys: bool = False
    """Whether later layers read its keys and values"""

    @property
    def groups(self) -> tuple[LoraGroup, ...]:
        return self.inputs, self.output

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self.inputs.parameters + self.output.parameters

    def begin(self, context: BlockContext) -> AttentionPass:
        inputs, output = (GroupPass.begin(group, context.dropout) for group in self.groups)
        given = [context.carried[name].detach() for name in self.carried]
        return AttentionPass(inputs, AttendingPass(self.heads, output, context.attention), given)

    def reference(self, x: Tensor, context: BlockContext) -> Tensor:
        projected = reference_group(self.inputs, x, context.dropout)
        projected += [context.carried[name] for name in self.carried]
        (output,) = reference_group(self.output, self.heads(projected, context.attention), context.dropout)
        return output

    def with_adapters(self) -> Attention | None:
        inputs, output = (read_group(self.module, names) for names in self.names)
        return replace(self, inputs=inputs, output=output) if inputs and output else None


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPass:
    """Attention in one pass."""

    inputs: GroupPass
    attending: AttendingPass
    given: Sequence[Tensor] = ()
    """keys and values of an earlier layer"""

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


def read_attention(module: Any, rows: Rows) -> Attention | None:
    """Return the attention that ``module`` computes, or None if it has not the parts that are known here.

    The first module of each kind is called, with ``rows``.
    """
    names = next(([n for n in names if _has(module, n)] for names in _INPUTS if _has(module, names[0])), None)
    output_name = next((name for name in _OUTPUTS if _has(module, name)), None)
    if names is None or output_name is None:
        return None
    names += [name for name in GATES if _has(module, name)]
    inputs, output = read_group(module, names), read_group(module, (output_name,))
    if inputs is None or output is None:
        return None

    def watched() -> Attention | None:
        seen = observe(module, rows)
        heads = read_heads(module, names, output_name, seen) if seen else None
        if seen is None or heads is None:
            return None
        given = shared_names(heads.kind) if seen.keys_given else ()
        both = tuple(names), (output_name,)
        return Attention(module, both, inputs, output, heads, carried=given, shares_keys=seen.keys_shared)

    first: Attention | None = rows.once("attention", module, watched)
    return first and replace(first, module=module, inputs=inputs, output=output, heads=first.heads.of(module))


def _has(module: Any, name: str) -> bool:
    return getattr(module, name, None) is not None
