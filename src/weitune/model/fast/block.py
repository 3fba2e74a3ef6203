"""A decoder block as one autograd function: forward and backward are written out, and backward keeps little.

    h ─┬─ norm ─ q,k,v ─ rotary ─ attention ─ o ─ + ─┬─ norm ─ gate,up ─ act·up ─ down ─ + ─▶ h'
       └──────────────────────────────────────────┘ └─────────────────────────────────┘

It keeps h at both forks, q, k, v and what attention keeps of them, the adapters' low-rank states and, if memory is not
short, gate and up. Norms, activations, masked inputs and dropout masks are computed again. Frozen weights get no
gradient, and neither does the block's input below the first adapter. The adapters of projections that read one input
share its dropout mask and one product (:class:`.LoraGroup`).

The last block can be asked for some rows only: everything after attention then runs on those.

Cost: the matrix products of the block twice, as in the plain path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weitune.model.fast.dropout import DropoutDraws
from weitune.model.fast.feed_forward import Activation, FeedForwardPass, SavedFeedForward
from weitune.model.fast.heads import Heads
from weitune.model.fast.lora_forward import GroupPass, reference_lora
from weitune.model.fast.norm import Norm
from weitune.model.fast.projection import LoraGroup
from weitune.model.storage.shard import gathered


class Groups(NamedTuple):
    """The projections of a block, grouped by the input that they read."""

    qkv: LoraGroup
    out: LoraGroup
    gate_up: LoraGroup
    down: LoraGroup


@dataclass(frozen=True, slots=True, eq=False)
class BlockParts:
    """The weights of a block, and what differs between families of models."""

    norm_in: Norm
    norm_post: Norm
    groups: Groups
    activation: Activation
    attend: Heads
    """From q (T, H·D), k and v (T, G·D) before rotary embedding, and the context's ``attention``, to (T, H·D);
    differentiable by autograd."""
    layer: torch.nn.Module
    """The decoder layer with these weights."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Every trained tensor of the block, in the order of :attr:`groups`."""
        return [parameter for group in self.groups for parameter in group.parameters]


@dataclass(slots=True, eq=False)
class BlockContext:
    """What all blocks share in one forward pass."""

    attention: Any
    """What :attr:`BlockParts.attend` needs to know of the row."""
    dropout: DropoutDraws | None
    keep_feed_forward: bool = True
    """Keep gate and up for backward: faster, but twice the memory."""
    retain_graph: bool = False
    """Let backward be called several times, as gradcheck does. Otherwise it frees what was kept while it runs."""


def reference_block(parts: BlockParts, hidden: Tensor, context: BlockContext) -> Tensor:
    """Compute what :func:`run_block` does as models write it; differentiable by autograd."""

    def norm(norm: Norm, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + norm.epsilon).rsqrt() * norm.weight

    def project(group: LoraGroup, x: Tensor) -> list[Tensor]:
        mask, dropout = None, context.dropout if group.adapted and group.rate else None
        if dropout is not None:
            mask = dropout.mask(dropout.draw_offset(), (len(x), group.inputs))
        return [reference_lora(p, x, mask, dropout.scale if dropout else 1.0) for p in group.projections]

    query, key, value = project(parts.groups.qkv, norm(parts.norm_in, hidden))
    (attended,) = project(parts.groups.out, parts.attend(query, key, value, context.attention))
    hidden = hidden + attended
    gate, up = project(parts.groups.gate_up, norm(parts.norm_post, hidden))
    (output,) = project(parts.groups.down, parts.activation[0](gate) * up)
    return hidden + output


def run_block(parts: BlockParts, hidden: Tensor, context: BlockContext, rows: Tensor | None = None) -> Tensor:
    """Return the block's output for ``hidden`` (T, C): (T, C), or (len(rows), C) for some ``rows`` only."""
    with gathered(parts.layer):
        output: Tensor = _Block.apply(hidden, parts, context, rows, *parts.parameters)  # type: ignore[no-untyped-call]
    return output


@dataclass(slots=True, eq=False)
class _Saved:
    """What forward keeps for backward."""

    hidden: Tensor
    """(T, C), at the first fork"""
    heads: tuple[Tensor, ...]
    """q, k and v: the leaves of attention's graph"""
    attended: Tensor
    """(T, H·D), with attention's graph"""
    middle: Tensor
    """(len(rows), C), at the second fork"""
    low_qkv: Tensor | None
    low_out: Tensor | None
    feed_forward: SavedFeedForward


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, parts: BlockParts, context: BlockContext, rows: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        qkv, out, gate_up, down = (GroupPass.begin(group, context.dropout) for group in parts.groups)
        projected, low_qkv = qkv.forward(parts.norm_in.forward(hidden)[0])
        heads = query, key, value = tuple(x.requires_grad_() for x in projected)
        with torch.enable_grad():
            attended = parts.attend(query, key, value, context.attention)
        taken, residual = attended.detach(), hidden
        if rows is not None:
            taken, residual = taken[rows], hidden[rows]
        (middle,), low_out = out.forward(taken)
        middle.add_(residual)
        feed_forward = FeedForwardPass(parts.norm_post, parts.activation, gate_up, down)
        output, saved = feed_forward.forward(middle, keep_inner=context.keep_feed_forward)

        ctx.parts, ctx.context, ctx.rows = parts, context, rows
        ctx.qkv, ctx.out, ctx.feed_forward = qkv, out, feed_forward
        ctx.saved = _Saved(hidden, heads, attended, middle, low_qkv, low_out, saved)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved: _Saved = ctx.saved
        retain: bool = ctx.context.retain_graph
        if not retain:
            ctx.saved = None  # autograd would keep it until the graph of all blocks is freed
        with gathered(ctx.parts.layer):
            grad_middle, feed_forward_grads = ctx.feed_forward.backward(
                grads[0], saved.middle, saved.feed_forward, retain=retain
            )
            grad_hidden, attention_grads = _attention_backward(ctx, saved, grad_middle)
        return grad_hidden, None, None, None, *attention_grads, *feed_forward_grads


def _attention_backward(ctx: Any, saved: _Saved, grad_middle: Tensor) -> tuple[Tensor | None, list[Tensor]]:
    """Return the gradient of the block's input, and those of the adapters before and after attention."""
    norm: Norm = ctx.parts.norm_in
    qkv: GroupPass = ctx.qkv
    out: GroupPass = ctx.out
    attended = saved.attended.detach()
    taken = attended if ctx.rows is None else attended[ctx.rows]
    grad_attended, out_grads = out.backward([grad_middle], saved.low_out, taken)
    grad_residual, retain = grad_middle, ctx.context.retain_graph
    if ctx.rows is not None:
        grad_attended = torch.zeros_like(attended).index_copy_(0, ctx.rows, grad_attended)
        grad_residual = torch.zeros_like(saved.hidden).index_copy_(0, ctx.rows, grad_middle)
    grad_heads = list(torch.autograd.grad(saved.attended, saved.heads, grad_attended, retain_graph=retain))
    normed, inverse = norm.forward(saved.hidden)
    if not ctx.needs_input_grad[0]:
        return None, qkv.backward_to_adapters(grad_heads, saved.low_qkv, normed) + out_grads
    grad_normed, qkv_grads = qkv.backward(grad_heads, saved.low_qkv, normed)
    return norm.backward(grad_normed, saved.hidden, inverse).add_(grad_residual), qkv_grads + out_grads


def run_recomputed(parts: BlockParts, hidden: Tensor, context: BlockContext, rows: Tensor | None = None) -> Tensor:
    """Compute what :func:`run_block` does, but keep only ``hidden`` for backward (Chen et al., arXiv 1604.06174).

    Backward runs the block again. It draws the same dropout, because the generator of the offsets gets its old state.
    Cost: the block's forward pass once more. About ten vectors are kept for each token of a block otherwise, here one.
    """
    output: Tensor = _Recomputed.apply(hidden, parts, context, rows, *parts.parameters)  # type: ignore[no-untyped-call]
    return output


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, parts: BlockParts, context: BlockContext, rows: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        ctx.parts, ctx.context, ctx.rows, ctx.generator = parts, context, rows, torch.get_rng_state()
        ctx.save_for_backward(hidden)
        return run_block(parts, hidden, context, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.saved_tensors
        parts: BlockParts = ctx.parts
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.generator)
            again = hidden.detach().requires_grad_(ctx.needs_input_grad[0])
            output = run_block(parts, again, ctx.context, ctx.rows)
        inputs = [again, *parts.parameters]
        trained = [tensor for tensor in inputs if tensor.requires_grad]
        if not trained:
            return (None,) * (4 + len(parts.parameters))
        computed = iter(torch.autograd.grad(output, trained, grads[0]))
        grad_hidden, *parameter_grads = (next(computed) if tensor.requires_grad else None for tensor in inputs)
        return grad_hidden, None, None, None, *parameter_grads
