"""Keys and values that later layers read too (Gemma 3n and 4), computed by a function of their own.

    h ─ norm ─ k,v ─ [norms of heads, rotary embedding] ─▶ keys, values ─┬─▶ attention of this layer
                                                                         └─▶ attention of later layers of its kind

Their gradients are the sum of what all these layers pass back. Between forward and backward the layer's input and k and
v are kept, with what autograd keeps of what is in brackets.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from weitune.model.fast.lora_forward import GroupPass, reference_group
from weitune.model.fast.norm import Norm
from weitune.model.fast.parts import BlockContext, BlockParts
from weitune.model.fast.projection import LoraGroup, read_group
from weitune.model.fast.self_attention.heads import Heads
from weitune.model.fast.self_attention.mixer import Attention
from weitune.model.fast.self_attention.positions import shared_names
from weitune.model.storage.shard import gathered


@dataclass(frozen=True, slots=True, eq=False)
class SharedKeys:
    """What computes the keys and values of one layer."""

    layer: nn.Module
    """The decoder layer"""
    module: nn.Module
    """Its attention"""
    norm: Norm
    names: Sequence[str]
    """of the projections"""
    inputs: LoraGroup
    """k and, unless values are keys before their norm, v"""
    heads: Heads
    """which split them"""

    @property
    def gives(self) -> tuple[Hashable, Hashable]:
        """The names of keys and values in the context's ``carried``."""
        return shared_names(self.heads.kind)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self.inputs.parameters

    def run(self, hidden: Tensor, context: BlockContext) -> None:
        """Add keys and values (1, G, T, D) for ``hidden`` (T, C), the block's input, to the context's ``carried``."""
        with gathered(self.layer):
            shared = _SharedKeys.apply(hidden, self, context, *self.parameters)  # type: ignore[no-untyped-call]
        context.carried.update(zip(self.gives, shared, strict=True))

    def reference(self, hidden: Tensor, context: BlockContext) -> None:
        """Do the same as models write it; differentiable by autograd."""
        projected = reference_group(self.inputs, self.norm.reference(hidden), context.dropout)
        context.carried.update(zip(self.gives, self.of_heads(projected, context), strict=True))

    def with_adapters(self) -> SharedKeys | None:
        inputs = read_group(self.module, self.names)
        return replace(self, inputs=inputs) if inputs else None

    def of_heads(self, projected: Sequence[Tensor], context: BlockContext) -> tuple[Tensor, Tensor]:
        """Return keys and values for what was projected, differentiable by autograd."""
        return self.heads.split_keys(projected, 1, context.attention.rotary_of(self.heads.kind))


@dataclass(slots=True, eq=False)
class _Saved:
    hidden: Tensor
    projected: list[Tensor]
    """the leaves of the graph"""
    shared: tuple[Tensor, Tensor]
    """keys and values, with the graph"""
    low: Tensor | None


class _SharedKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, keys: SharedKeys, context: BlockContext, *_: Tensor) -> tuple[Tensor, Tensor]:
        ctx.keys, ctx.retain, ctx.inputs = keys, context.retain_graph, GroupPass.begin(keys.inputs, context.dropout)
        projected, low = ctx.inputs.forward(keys.norm.forward(hidden)[0])
        leaves = [each.requires_grad_() for each in projected]
        with torch.enable_grad():
            key, value = keys.of_heads(leaves, context)
        ctx.saved = _Saved(hidden, leaves, (key, value), low)
        return key.detach(), value.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        keys: SharedKeys = ctx.keys
        saved: _Saved = ctx.saved
        if not ctx.retain:
            ctx.saved = None  # autograd would keep it until the graph of all blocks is freed
        with gathered(keys.layer):
            of_projected = list(torch.autograd.grad(saved.shared, saved.projected, grads, retain_graph=ctx.retain))
            x, statistics = keys.norm.forward(saved.hidden)
            if not ctx.needs_input_grad[0]:
                return None, None, None, *ctx.inputs.backward_to_adapters(of_projected, saved.low, x)
            grad_x, adapter_grads = ctx.inputs.backward(of_projected, saved.low, x)
            return keys.norm.backward(grad_x, saved.hidden, statistics), None, None, *adapter_grads


def share_keys(block: BlockParts) -> BlockParts | None:
    """Return ``block`` with a function of its own for the keys and values that later layers read, if they do.

    None if there are not q, k and perhaps v apart, behind a norm.
    """
    at = next((k for k, b in enumerate(block.branches) if isinstance(b.mixer, Attention) and b.mixer.shares_keys), None)
    if at is None:
        return block
    branch = block.branches[at]
    attention = cast(Attention, branch.mixer)
    (query, *names), output = attention.names
    inputs, own = read_group(attention.module, names), read_group(attention.module, (query,))
    if query != "q_proj" or branch.pre is None or at > 0 or inputs is None or own is None:
        return None
    keys = SharedKeys(block.layer, attention.module, branch.pre, names, inputs, attention.heads)
    attending = replace(
        attention,
        names=((query,), output),
        inputs=own,
        middle=replace(attention.heads, keys="given"),
        carried=keys.gives,
        shares_keys=False,
    )
    return replace(block, keys=keys, branches=[replace(branch, mixer=attending), *block.branches[1:]])
