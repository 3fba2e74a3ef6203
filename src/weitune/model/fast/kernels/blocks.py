"""Tree attention for CPUs: each block of rows attends to its ancestors and itself.

Every row is scored against its ancestors and, on average, half a block more. Memory is linear in T, because backward
computes the scores again: as in flash attention (Dao et al., arXiv 2205.14135) only the normaliser of each query is
kept, log Σ exp(score). A sink s is one more term in it:

    normaliser' = log(exp(normaliser) + exp(s))        out' = out · exp(normaliser - normaliser')

The backward of attention without sinks, given out' and normaliser', then returns the gradients of attention with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from weitune.model.fast.kernels.dense import dense_attention
from weitune.model.fast.kernels.scores import Scores
from weitune.model.fast.matmul import round_rows
from weitune.model.fast.tree import Block, Tree


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, tree: Tree, scores: Scores, dropout: float = 0.0
) -> Tensor:
    """Return what :func:`.dense_attention` returns; with dropout, by that.

    The query heads that share a key head become further queries of it, (G, H/G · rows, D), so that keys and values are
    not copied for each of them.
    """
    if dropout:
        return dense_attention(query, key, value, tree, scores, dropout)
    out: Tensor = _BlockAttention.apply(query, key, value, scores.sinks, tree, scores)  # type: ignore[no-untyped-call]
    return out


class _BlockAttention(torch.autograd.Function):
    """A loop over the blocks. Autograd around the loop would keep the folded queries and gathered keys of every block;
    here backward makes them again."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, tree: Tree, scores: Scores
    ) -> Tensor:
        heads, groups = query.shape[1], key.shape[1]
        plain = scores.cap is None and query.shape[-1] == value.shape[-1]
        kernel: Kernel = Flash(scores.scaling) if plain else Written(scores.scale(query.shape[-1]), scores.cap)
        out = query.new_empty(1, query.shape[2], heads, value.shape[-1])
        normalisers = []
        for block, bias in blocks_with_bias(tree, scores.window, heads // groups, query.dtype):
            keys, values = key.index_select(2, block.keys), value.index_select(2, block.keys)
            part, normaliser = kernel.forward(_folded(query, block, groups), keys, values, bias)
            if sinks is not None:
                sink = _folded_sinks(sinks, block, groups).to(normaliser.dtype)
                part = part * torch.sigmoid(normaliser - sink).to(part.dtype).unsqueeze(-1)
                normaliser = torch.logaddexp(normaliser, sink)
            out[:, block.start : block.stop] = part.reshape(1, heads, -1, part.shape[-1]).transpose(1, 2)
            normalisers.append(normaliser)
        ctx.save_for_backward(query, key, value, sinks, out, *normalisers)
        ctx.tree, ctx.scores, ctx.kernel = tree, scores, kernel
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, out, *normalisers = ctx.saved_tensors
        heads, groups = query.shape[1], key.shape[1]
        grad, out = grads[0].transpose(1, 2), out.transpose(1, 2)
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        grad_sinks = torch.zeros_like(sinks) if ctx.needs_input_grad[3] else None
        blocks = blocks_with_bias(ctx.tree, ctx.scores.window, heads // groups, query.dtype)
        for (block, bias), normaliser in zip(blocks, normalisers, strict=True):
            keys, values = key.index_select(2, block.keys), value.index_select(2, block.keys)
            parts = [_folded(x, block, groups) for x in (grad, query, out)]
            by_query, by_key, by_value = ctx.kernel.backward(*parts, keys, values, normaliser, bias)
            grad_query[:, :, block.start : block.stop] = by_query.reshape(1, heads, -1, by_query.shape[-1])
            grad_key.index_add_(2, block.keys, by_key)
            grad_value.index_add_(2, block.keys, by_value)
            if grad_sinks is not None:
                weights = torch.exp(_folded_sinks(sinks, block, groups) - normaliser)
                grad_sinks -= (weights * (parts[0] * parts[2]).sum(-1)).view(heads, -1).sum(-1).to(sinks.dtype)
        return grad_query, grad_key, grad_value, grad_sinks, None, None


class Kernel(Protocol):
    """Attention of folded queries (1, G, Q, D) over keys and values (1, G, K, D) with an additive mask (Q, K)."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output, (1, G, Q, D), and the normalisers, (1, G, Q)."""

    def backward(
        self, grad: Tensor, query: Tensor, out: Tensor, key: Tensor, value: Tensor, normaliser: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value from that of the output, ``grad``."""


@dataclass(frozen=True, slots=True)
class Flash:
    """The kernels that ``scaled_dot_product_attention`` itself calls on a CPU: one size of heads, and no cap."""

    scaling: float | None

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=bias, scale=self.scaling
        )
        return out, normaliser

    def backward(
        self, grad: Tensor, query: Tensor, out: Tensor, key: Tensor, value: Tensor, normaliser: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        by_query, by_key, by_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, normaliser, 0.0, False, attn_mask=bias, scale=self.scaling
        )
        return by_query, by_key, by_value


@dataclass(frozen=True, slots=True)
class Written:
    """Any formula of the scores, which exist for one block at a time; keys and values may differ in size."""

    scaling: float
    cap: float | None

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        scores = self._scores(query, key)[0].add_(bias)
        normaliser = scores.logsumexp(-1)
        weights = scores.sub_(normaliser.unsqueeze(-1)).exp_()
        return weights.to(query.dtype) @ value, normaliser

    def backward(
        self, grad: Tensor, query: Tensor, out: Tensor, key: Tensor, value: Tensor, normaliser: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        scores, slope = self._scores(query, key)
        weights = scores.add_(bias).sub_(normaliser.unsqueeze(-1)).exp_()
        mean = (grad * out).sum(-1, keepdim=True, dtype=weights.dtype)
        grad_scores = (grad @ value.mT).to(weights.dtype).sub_(mean).mul_(weights).mul_(self.scaling)
        if slope is not None:
            grad_scores.mul_(slope)
        grad_scores, weights = grad_scores.to(query.dtype), weights.to(query.dtype)
        return grad_scores @ key, grad_scores.mT @ query, weights.mT @ grad

    def _scores(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the scores (1, G, Q, K) and, with a cap, its derivative, both in float32 at least."""
        wide = torch.promote_types(query.dtype, torch.float32)
        products = query.to(wide) @ key.to(wide).mT
        if self.cap is None:
            return products.mul_(self.scaling), None
        bent = products.mul_(self.scaling / self.cap).tanh_()
        return self.cap * bent, bent.square_().neg_().add_(1)


def _folded(heads: Tensor, block: Block, groups: int) -> Tensor:
    """Return a block's rows of ``heads`` (1, H, T, D) with the heads of a group as rows: (1, G, H/G · rows, D)."""
    return heads[:, :, block.start : block.stop].reshape(1, groups, -1, heads.shape[-1])


def _folded_sinks(sinks: Tensor, block: Block, groups: int) -> Tensor:
    """Return the sink (H,) of each folded query: (1, G, H/G · rows)."""
    return sinks.view(groups, -1).repeat_interleave(block.stop - block.start, dim=1)[None]


def blocks_with_bias(tree: Tree, window: int | None, repeat: int, dtype: torch.dtype) -> list[tuple[Block, Tensor]]:
    """Return the blocks, each with its additive mask repeated for every query head of a group."""

    def make() -> list[tuple[Block, Tensor]]:
        nothing, never = torch.zeros((), dtype=dtype), torch.full((), float("-inf"), dtype=dtype)
        blocks = tree.blocks(window)
        if dtype.itemsize == 2:  # PyTorch itself gives these products to oneDNN
            blocks = [block.rounded_up(round_rows("cpu", dtype)) for block in blocks]
        return [(block, nothing.where(block.seen, never).repeat(repeat, 1)) for block in blocks]

    made: list[tuple[Block, Tensor]] = tree.once(("bias", window, repeat, dtype), make)
    return made
