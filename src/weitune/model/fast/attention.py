"""Attention over a packed row: token i sees token j exactly when ``j <= i < subtree_end[j]``.

transformers lets a model's attention be replaced by name (``AttentionInterface``) without touching the model: the
keyword argument ``tree`` of the model's forward arrives here in every layer. Three functions compute the same thing:

    dense    one mask (T, T) for the whole row: the definition, and the reference in tests
    blocks   for CPUs: a block of rows [a, b) over its ancestors and itself

                  keys     S  U1 A1 A3 U2 A2          rows are depth first, so what any row of a block sees before
                  U1 A1    x  x  x                    row a is an ancestor of row a itself: one gather of keys serves
                  A3 U2    x  x     x  x              the whole block, and only a small mask is left

    flex     for GPUs: FlexAttention compiled with the one-line rule

Cost of blocks: T · (ancestors + block) scores, as many as the tree has edges to ancestors but for half a block a row;
memory is linear in T, for no scores are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weitune.data.pack import PackedBatch
from weitune.model.fast.compiled import can_compile, fused
from weitune.model.fast.matmul import round_rows

if TYPE_CHECKING:
    from torch import nn

DENSE, BLOCKS, FLEX = "weitune_tree_dense", "weitune_tree_blocks", "weitune_tree_flex"
BLOCK_ROWS = 64
"""Rows that attend together on a CPU: shorter blocks waste less on masked keys, longer ones call less often."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows ``start`` to ``stop`` and what they see."""

    start: int
    stop: int
    keys: Tensor
    """(K,) row indices: the ancestors of row ``start``, then the block itself."""
    seen: Tensor
    """(stop - start, K) which of the keys each row sees."""

    def rounded_up(self, unit: int) -> Block:
        """Return the block with keys that no row sees, up to a multiple of ``unit``."""
        spare = -len(self.keys) % unit
        return replace(self, keys=F.pad(self.keys, (0, spare)), seen=F.pad(self.seen, (0, spare)))


@dataclass(slots=True, eq=False)
class Tree:
    """The shape of a packed row as tensors on the model's device, and the masks made from it, for all layers."""

    position_ids: Tensor
    """(T,)"""
    subtree_end: Tensor
    """(T,)"""
    made: dict[Hashable, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: PackedBatch, device: torch.device) -> Tree:
        """Copy the shape of ``batch`` to ``device``."""
        return cls(torch.from_numpy(batch.position_ids).to(device), torch.from_numpy(batch.subtree_end).to(device))

    def rounded_up(self, unit: int) -> Tree:
        """Return the tree with tokens that see themselves alone, up to a multiple of ``unit``."""
        length = len(self.subtree_end)
        spare = -length % unit
        ends = torch.arange(length + 1, length + spare + 1, device=self.subtree_end.device)
        return Tree(F.pad(self.position_ids, (0, spare)), torch.cat([self.subtree_end, ends]))

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what ``make`` returns, made only once for all layers."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def seen(self, rows: Tensor, keys: Tensor, window: int | None = None) -> Tensor:
        """Apply the one rule: (len(rows), len(keys)), whether each of ``rows`` sees each of ``keys``.

        With ``window``, a token sees only that many positions back, itself included.
        """
        seen = (keys[None, :] <= rows[:, None]) & (rows[:, None] < self.subtree_end[keys][None, :])
        if window is not None:
            seen &= self.position_ids[rows][:, None] - self.position_ids[keys][None, :] < window
        return seen

    def mask(self, window: int | None = None) -> Tensor:
        """Return the whole mask (T, T)."""
        every = torch.arange(len(self.subtree_end), device=self.subtree_end.device)
        mask: Tensor = self.once(("mask", window), lambda: self.seen(every, every, window))
        return mask

    def blocks(self, window: int | None = None) -> list[Block]:
        """Return the row cut into blocks of at most ``BLOCK_ROWS`` rows, each with the keys it needs."""
        blocks: list[Block] = self.once(("blocks", window), lambda: list(self._cut(window)))
        return blocks

    def _cut(self, window: int | None) -> Iterator[Block]:
        every = torch.arange(len(self.subtree_end), device=self.subtree_end.device)
        for start in range(0, len(every), BLOCK_ROWS):
            rows = every[start : start + BLOCK_ROWS]
            ancestors = every[:start][self.subtree_end[:start] > start]
            keys = torch.cat([ancestors, rows])
            seen = self.seen(rows, keys, window)
            used = seen.any(dim=0)  # a window hides distant ancestors from the whole block
            yield Block(start, start + len(rows), keys[used], seen[:, used])


def register() -> None:
    """Make the tree attentions known to transformers by name. Calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(DENSE, dense_tree_attention)
    AttentionInterface.register(BLOCKS, block_tree_attention)
    AttentionInterface.register(FLEX, flex_tree_attention)


def attention_for(device: torch.device) -> str:
    """Return the name of the attention that is fastest on ``device``."""
    if device.type == "cuda":
        return FLEX if can_compile() else DENSE
    return BLOCKS


def dense_tree_attention(
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
    """Compute attention with the rule as a dense mask: the definition that faster paths are tested against.

    ``query`` is (1, H, T, D), ``key`` and ``value`` (1, G, T, D); the result is (1, T, H, D). Memory grows with T².
    """
    mask = _checked(tree, extra).mask(sliding_window)[None, None]
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2), None


def block_tree_attention(
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
    """Compute the same as :func:`dense_tree_attention`, block by block; the fast path on CPUs.

    The query heads that share a key head are laid out as further queries of it, (G, H/G · rows, D), so that keys and
    values are never copied for each of them.
    """
    tree = _checked(tree, extra)
    if dropout:
        return dense_tree_attention(
            module, query, key, value, None, tree=tree, scaling=scaling, sliding_window=sliding_window, dropout=dropout
        )
    out: Tensor = _BlockAttention.apply(query, key, value, tree, sliding_window, scaling)  # type: ignore[no-untyped-call]
    return out, None


class _BlockAttention(torch.autograd.Function):
    """The blocks in a loop, over the kernels that ``scaled_dot_product_attention`` itself calls on a CPU.

    Autograd around that function would keep the folded queries and gathered keys of every block; here backward makes
    them again. Flash attention keeps no scores either (Dao et al., arXiv 2205.14135), but one number for each query.
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
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *normalisers = ctx.saved_tensors
        heads, groups = query.shape[1], key.shape[1]
        slope, out = slopes[0].transpose(1, 2), out.transpose(1, 2)
        found = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        blocks = _blocks_with_bias(ctx.tree, ctx.window, heads // groups, query.dtype)
        for (block, bias), normaliser in zip(blocks, normalisers, strict=True):
            keys, values = key.index_select(2, block.keys), value.index_select(2, block.keys)
            parts = (_folded(x, block, groups) for x in (slope, query))
            by_query, by_key, by_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *parts, keys, values, _folded(out, block, groups), normaliser, 0.0, False, attn_mask=bias,
                scale=ctx.scaling,
            )  # fmt: skip
            found[0][:, :, block.start : block.stop] = by_query.reshape(1, heads, -1, by_query.shape[-1])
            found[1].index_add_(2, block.keys, by_key)
            found[2].index_add_(2, block.keys, by_value)
        return *found, None, None, None


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


def flex_tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: Tree | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Compute the same as :func:`dense_tree_attention` with FlexAttention; the fast path on GPUs.

    On a GPU it is compiled once for all lengths of a row. Keys and values are copied for every query head of theirs:
    with few of them backward would keep few of a GPU's processors busy. There is no dropout of attention weights here;
    models that ask for it in training are rare, and are told so.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    tree = _checked(tree, extra)
    if extra.get("dropout"):
        raise ValueError("the model's attention uses dropout")
    length = query.shape[2]

    def rule(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = (j <= i) & (i < tree.subtree_end[j])
        if sliding_window is not None:
            seen = seen & (tree.position_ids[i] - tree.position_ids[j] < sliding_window)
        return seen

    block_mask = tree.once(
        ("flex", sliding_window), lambda: create_block_mask(rule, None, None, length, length, device=query.device)
    )
    repeat = query.shape[1] // key.shape[1]
    keys, values = (x.repeat_interleave(repeat, dim=1) if repeat > 1 else x for x in (key, value))
    return _flex(query, keys, values, block_mask, scaling), None


@fused
def _flex(query: Tensor, key: Tensor, value: Tensor, block_mask: Any, scaling: float | None) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    out: Any = flex_attention(query, key, value, block_mask=block_mask, scale=scaling)
    turned: Tensor = out.transpose(1, 2).contiguous()
    return turned


def _checked(tree: Tree | None, extra: dict[str, Any]) -> Tree:
    """Raise ValueError if the model did not pass the tree on, or asks for attention that is not a plain softmax."""
    if tree is None:
        raise ValueError("the model does not pass keyword arguments on to its attention")
    for name in ("softcap", "s_aux", "position_bias"):
        if extra.get(name) is not None:
            raise ValueError(f"the model's attention uses {name}")
    return tree
