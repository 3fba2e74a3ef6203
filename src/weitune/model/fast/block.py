"""A decoder block, branch by branch: each is one autograd function whose backward is written out and keeps little.

    h ─┬─ norm ─ attention ─ + ─┬─ norm ─ feed-forward ─ + ─▶ h'          the branches of most families
       └────────────────────────┘└───────────────────────┘

A branch keeps h and what its mixer keeps; the normalised input is computed again. Frozen weights get no gradient, and
neither does the block's input below the first adapter. The adapters of projections that read one input share its
dropout mask and one product (:class:`.LoraGroup`).

The last block can be asked for some rows only: everything after its attention then runs on those.

Cost: the matrix products of the block twice, as in the plain path.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from weitune.model.fast.parts import BlockContext, BlockParts, Branch
from weitune.model.storage.shard import gather, gathered, release


def reference_block(parts: BlockParts, hidden: Tensor, context: BlockContext) -> Tensor:
    """Compute what :func:`run_block` does as models write it; differentiable by autograd.

    If the block has ``keys``, they have been run, or their own twin.
    """
    output = hidden
    for branch in parts.branches:
        x = hidden if parts.parallel else output
        x = branch.mixer.reference(branch.pre.reference(x) if branch.pre else x, context)
        output = output + branch.multiplier * (branch.post.reference(x) if branch.post else x)
    return output if parts.scale == 1 else output * parts.scale


def run_block(parts: BlockParts, hidden: Tensor, context: BlockContext, rows: Tensor | None = None) -> Tensor:
    """Return the block's output for ``hidden`` (T, C): (T, C), or (len(rows), C) for some ``rows`` only.

    If the block has ``keys``, they have been run.
    """
    output = hidden
    taking = max((at for at, branch in enumerate(parts.branches) if branch.mixer.mixes_tokens), default=0)
    with gathered(parts.layer):
        for at, branch in enumerate(parts.branches):
            deepest = at == 0 or not (hidden.requires_grad or output.requires_grad)
            run = _Run(branch, context, rows if parts.parallel or at == taking else None, parts.layer, deepest)
            x, base = (hidden, output if at else None) if parts.parallel else (output, None)
            carried = (context.carried[name] for name in branch.mixer.carried)
            output = _Branch.apply(x, base, run, *carried, *branch.mixer.parameters)  # type: ignore[no-untyped-call]
    return output if parts.scale == 1 else output * parts.scale


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """What a branch is run with besides its input."""

    branch: Branch
    context: BlockContext
    rows: Tensor | None
    """the only rows to compute"""
    layer: nn.Module
    deepest: bool
    """whether no other branch of the layer runs backward after this one"""


@dataclass(slots=True, eq=False)
class _Saved:
    """What forward keeps for backward."""

    hidden: Tensor
    """(T, C), at the fork"""
    mixer: Any
    mixed: Tensor | None
    """The mixer's output, if a norm follows"""
    statistics: Any
    """of that norm"""


class _Branch(torch.autograd.Function):
    """Computes base + multiplier · post(mixer(pre(hidden))), where ``base`` is ``hidden`` unless it is given."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, base: Tensor | None, run: _Run, *_: Tensor) -> Tensor:
        branch, rows = run.branch, run.rows
        ctx.own_base, ctx.tokens = base is None, len(hidden)
        if rows is not None:
            base = hidden[rows] if base is None else base
            if not branch.mixer.mixes_tokens:
                hidden, rows = hidden[rows], None
        base = hidden if base is None else base
        mixer = branch.mixer.begin(run.context)
        x = branch.pre.forward(hidden)[0] if branch.pre else hidden
        plain = branch.post is None and branch.multiplier == 1
        output, kept = mixer.forward(x, base if plain else None, rows)
        ctx.run, ctx.mixer, ctx.saved = run, mixer, _Saved(hidden, kept, None, None)
        if branch.post is not None:
            ctx.saved.mixed = output
            output, ctx.saved.statistics = branch.post.forward(output)
        return output if plain else torch.add(base, output, alpha=branch.multiplier)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        run: _Run = ctx.run
        saved: _Saved = ctx.saved
        branch, retain = run.branch, run.context.retain_graph
        if not retain:
            ctx.saved = None  # autograd would keep it until the graph of all blocks is freed
        gather(run.layer)
        (grad,) = grads
        grad_mixed = grad if branch.multiplier == 1 else grad * branch.multiplier
        if branch.post is not None and saved.mixed is not None:
            grad_mixed = branch.post.backward(grad_mixed, saved.mixed, saved.statistics)
            if not retain:
                saved.mixed = None
        x, statistics = branch.pre.forward(saved.hidden) if branch.pre else (saved.hidden, None)
        needed = ctx.needs_input_grad[0]
        grad_x, other_grads = ctx.mixer.backward(grad_mixed, x, saved.mixer, retain=retain, needs_input=needed)
        if run.deepest:
            release(run.layer)
        grad_hidden = _grad_of_input(ctx, saved, grad, grad_x, statistics) if needed else None
        return grad_hidden, None if ctx.own_base else grad, None, *other_grads


def _grad_of_input(ctx: Any, saved: _Saved, grad: Tensor, grad_x: Tensor, statistics: Any) -> Tensor:
    """Return the gradient of what the branch reads, from ``grad_x``, that of the mixer's input."""
    branch, rows = ctx.run.branch, ctx.run.rows
    grad_hidden: Tensor = branch.pre.backward(grad_x, saved.hidden, statistics) if branch.pre else grad_x
    if rows is None or not branch.mixer.mixes_tokens:
        grad_hidden = grad_hidden.add_(grad) if ctx.own_base else grad_hidden
        return grad_hidden if rows is None else _spread(grad_hidden, rows, ctx.tokens)
    return grad_hidden.add_(_spread(grad, rows, ctx.tokens)) if ctx.own_base else grad_hidden


def _spread(some: Tensor, rows: Tensor, length: int) -> Tensor:
    """Return ``length`` rows: at ``rows`` those of ``some``, zeros elsewhere."""
    return some.new_zeros(length, some.shape[1]).index_copy_(0, rows, some)


def run_recomputed(parts: BlockParts, hidden: Tensor, context: BlockContext, rows: Tensor | None = None) -> Tensor:
    """Compute what :func:`run_block` does, but keep only ``hidden`` for backward (Chen et al., arXiv 1604.06174).

    Backward runs the block again. It draws the same dropout, because the generator of the offsets gets its old state.
    Cost: the block's forward pass once more. About ten vectors are kept for each token of a block otherwise, here one.
    """
    carried = [context.carried[name] for name in parts.carried]
    output: Tensor = _Recomputed.apply(  # type: ignore[no-untyped-call]
        hidden, parts, context, rows, *carried, *parts.branch_parameters
    )
    return output


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, parts: BlockParts, context: BlockContext, rows: Tensor | None, *others: Tensor
    ) -> Tensor:
        ctx.parts, ctx.context, ctx.rows, ctx.generator = parts, context, rows, torch.get_rng_state()
        ctx.save_for_backward(hidden, *others[: len(parts.carried)])
        return run_block(parts, hidden, context, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        parts: BlockParts = ctx.parts
        needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[4:])
        again, *carried = (
            x.detach().requires_grad_(needs) for x, needs in zip(ctx.saved_tensors, needed, strict=False)
        )
        context = replace(ctx.context, carried=dict(zip(parts.carried, carried, strict=True)))
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.generator)
            output = run_block(parts, again, context, ctx.rows)
        inputs = [again, *carried, *parts.branch_parameters]
        trained = [tensor for tensor in inputs if tensor.requires_grad]
        if not trained:
            return (None,) * (3 + len(inputs))
        computed = iter(torch.autograd.grad(output, trained, grads[0]))
        grad_hidden, *other_grads = (next(computed) if tensor.requires_grad else None for tensor in inputs)
        return grad_hidden, None, None, None, *other_grads
