"""Attention over a packed row, by the rule of its :class:`Tree`.

transformers lets a model's attention be replaced by name (``AttentionInterface``) without touching the model: the
keyword argument ``tree`` of the model's forward reaches these functions in every layer. All three compute the same:

    dense    one mask (T, T) for the row: the definition, and the reference in tests
    blocks   for CPUs: each block of rows attends to its ancestors and itself
    flex     for GPUs: FlexAttention, compiled with the rule

The query is (1, H, T, D), key and value (1, G, T, D), and the result (1, T, H, D).

Cost of blocks: every row is scored against its ancestors and, on average, half a block more. Memory is linear in T,
because no scores are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.messages import say
from weitune.model.fast.compiled import can_compile, fused
from weitune.model.fast.matmul import round_rows
from weitune.model.fast.tree import Block, Tree

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

DENSE, BLOCKS, FLEX = "weitune_tree_dense", "weitune_tree_blocks", "weitune_tree_flex"


def register() -> None:
    """Register the tree attentions with transformers; a second call changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(DENSE, dense_tree_attention)
    AttentionInterface.register(BLOCKS, block_tree_attention)
    AttentionInterface.register(FLEX, flex_tree_attention)


def attention_for(device: torch.device) -> str:
    """Return the name of the fastest tree attention on ``device``."""
    if device.type == "cuda":
        return FLEX if can_compile() else DENSE
    return BLOCKS


def use_tree_attention(model: PreTrainedModel) -> None:
    """Switch the modules of ``model`` to tree attention. Raises ValueError if their attention cannot be replaced."""
    register()
    model.set_attn_implementation(attention_for(model.get_input_embeddings().weight.device))


def use_own_attention(model: PreTrainedModel) -> None:
    """Switch the modules of ``model`` back to attention without a tree, as generating with a cache needs."""
    if model.config._attn_implementation not in (DENSE, BLOCKS, FLEX):
        return
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:  # the model implements its own attention only
        model.set_attn_implementation("eager")


@contextmanager
def tree_attention(model: PreTrainedModel, *, on: bool = True) -> Iterator[None]:
    """Use tree attention in ``model`` within the block, or attention without a tree if not ``on``; then restore it."""
    before = model.config._attn_implementation
    try:
        (use_tree_attention if on else use_own_attention)(model)
        yield
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)


def _called_by_transformers(compute: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """Give ``compute`` (query, key, value, tree, window, scaling, dropout) the signature that transformers calls.

    The result raises ValueError if the model does not pass the tree on, or if its attention is no plain softmax.
    """

    @wraps(compute)
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        tree: Tree | None = None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        dropout: float = 0.0,
        **extra: Any,
    ) -> tuple[Tensor, None]:
        if tree is None:
            raise ValueError(say("model.attention.no_keyword_arguments"))
        for name in ("softcap", "s_aux", "position_bias"):
            if extra.get(name) is not None:
                raise ValueError(say("model.attention.not_plain_softmax", feature=name))
        return compute(query, key, value, tree, sliding_window, scaling, dropout), None

    return attention


def _dense(
    query: Tensor, key: Tensor, value: Tensor, tree: Tree, window: int | None, scaling: float | None, dropout: float
) -> Tensor:
    """Compute attention with the rule as a dense mask. Memory grows with T²."""
    mask, grouped = tree.mask(window)[None, None], query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2)


def _blocks(
    query: Tensor, key: Tensor, value: Tensor, tree: Tree, window: int | None, scaling: float | None, dropout: float
) -> Tensor:
    """Compute the same block by block; with dropout, by the dense mask.

    The query heads that share a key head become further queries of it, (G, H/G · rows, D), so that keys and values are
    not copied for each of them.
    """
    if dropout:
        return _dense(query, key, value, tree, window, scaling, dropout)
    out: Tensor = _BlockAttention.apply(query, key, value, tree, window, scaling)  # type: ignore[no-untyped-call]
    return out


class _BlockAttention(torch.autograd.Function):
    """A loop over the blocks with the kernels that ``scaled_dot_product_attention`` itself calls on a CPU.

    Autograd around that function would keep the folded queries and gathered keys of every block; here backward makes
    them again. Flash attention (Dao et al., arXiv 2205.14135) keeps one number for each query instead of its scores.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: Tree, window: int | None, scaling: float | None
    ) -> Tensor:
        heads, groups = query.shape[1], key.shape[1]
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        normalisers = []
        for block, bias in _blocks_with_bias(tree, window, heads // groups, query.dtype):
            keys, values = key.index_select(2, block.keys), value.index_select(2, block.keys)
            part, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                _folded(query, block, groups), keys, values, attn_mask=bias, scale=scaling
            )
            out[:, block.start : block.stop] = part.reshape(1, heads, -1, part.shape[-1]).transpose(1, 2)
            normalisers.append(normaliser)
        ctx.save_for_backward(query, key, value, out, *normalisers)
        ctx.tree, ctx.window, ctx.scaling = tree, window, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *normalisers = ctx.saved_tensors
        heads, groups, scaling = query.shape[1], key.shape[1], ctx.scaling
        grad, out = grads[0].transpose(1, 2), out.transpose(1, 2)
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        blocks = _blocks_with_bias(ctx.tree, ctx.window, heads // groups, query.dtype)
        for (block, bias), normaliser in zip(blocks, normalisers, strict=True):
            keys, values = key.index_select(2, block.keys), value.index_select(2, block.keys)
            parts = (_folded(x, block, groups) for x in (grad, query))
            by_query, by_key, by_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *parts, keys, values, _folded(out, block, groups), normaliser, 0.0, False, attn_mask=bias, scale=scaling
            )
            grad_query[:, :, block.start : block.stop] = by_query.reshape(1, heads, -1, by_query.shape[-1])
            grad_key.index_add_(2, block.keys, by_key)
            grad_value.index_add_(2, block.keys, by_value)
        return grad_query, grad_key, grad_value, None, None, None


def _folded(heads: Tensor, block: Block, groups: int) -> Tensor:
    """Return a block's rows of ``heads`` (1, H, T, D) with the heads of a group as rows: (1, G, H/G · rows, D)."""
    return heads[:, :, block.start : block.stop].reshape(1, groups, -1, heads.shape[-1])


def _blocks_with_bias(tree: Tree, window: int | None, repeat: int, dtype: torch.dtype) -> list[tuple[Block, Tensor]]:
    """Return the blocks, each with its additive mask repeated for every query head of a group."""

    def make() -> list[tuple[Block, Tensor]]:
        nothing, never = torch.zeros((), dtype=dtype), torch.full((), float("-inf"), dtype=dtype)
        blocks = tree.blocks(window)
        if dtype.itemsize == 2:  # PyTorch itself gives these products to oneDNN
            blocks = [block.rounded_up(round_rows("cpu", dtype)) for block in blocks]
        return [(block, nothing.where(block.seen, never).repeat(repeat, 1)) for block in blocks]

    made: list[tuple[Block, Tensor]] = tree.once(("bias", window, repeat, dtype), make)
    return made


def _flex(
    query: Tensor, key: Tensor, value: Tensor, tree: Tree, window: int | None, scaling: float | None, dropout: float
) -> Tensor:
    """Compute the same with FlexAttention, which is compiled once for all lengths of a row.

    Keys and values are copied for each of their query heads: with few key heads backward would keep few of a GPU's
    processors busy. Raises ValueError for dropout of attention weights, which few models use in training.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    if dropout:
        raise ValueError(say("model.attention.not_plain_softmax", feature="dropout"))
    length = query.shape[2]

    def rule(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = (j <= i) & (i < tree.subtree_end[j])
        if window is not None:
            seen = seen & (tree.position_ids[i] - tree.position_ids[j] < window)
        return seen

    block_mask = tree.once(
        ("flex", window), lambda: create_block_mask(rule, None, None, length, length, device=query.device)
    )
    repeat = query.shape[1] // key.shape[1]
    keys, values = (x.repeat_interleave(repeat, dim=1) if repeat > 1 else x for x in (key, value))
    return _fused_flex(query, keys, values, block_mask, scaling)


@fused
def _fused_flex(query: Tensor, key: Tensor, value: Tensor, block_mask: Any, scaling: float | None) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    out: Any = flex_attention(query, key, value, block_mask=block_mask, scale=scaling)
    turned: Tensor = out.transpose(1, 2).contiguous()
    return turned


dense_tree_attention, block_tree_attention, flex_tree_attention = map(_called_by_transformers, (_dense, _blocks, _flex))
