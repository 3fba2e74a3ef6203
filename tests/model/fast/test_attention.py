"""Every tree attention against the dense definition: values, gradients, windows, grouped heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.invariant.test_oracle import examples_with_forks
from weitune.data.conversation import Example, Span
from weitune.data.pack import pack, visible
from weitune.model.fast import attention
from weitune.model.fast.attention import block_tree_attention, dense_tree_attention, flex_tree_attention
from weitune.model.fast.matmul import round_rows
from weitune.model.fast.tree import BLOCK_ROWS, Tree

CPU = torch.device("cpu")


def text(*tokens: int) -> Example:
    """Return an example that puts all ``tokens`` into the row, with one more to predict after them."""
    return Example((*tokens, 0), (Span(len(tokens), len(tokens) + 1),))


def tree_of(examples: list[Example]) -> Tree:
    return Tree.from_batch(pack(examples), CPU)


def shapes() -> dict[str, list[Example]]:
    chain = tuple(range(300))
    return {
        "one token": [text(1)],
        "one long conversation": [text(*chain)],
        "a fork deep inside": [text(*chain[:200], 999, *chain[:70]), text(*chain)],
        "forks everywhere": examples_with_forks(40, vocabulary=50),
        "several roots": [text(*range(k, k + 50)) for k in range(5)],
    }


@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("name", shapes())
def test_the_mask_is_the_rule_of_the_packed_row(name: str, window: int | None) -> None:
    batch = pack(shapes()[name])
    tree = Tree.from_batch(batch, CPU)
    rule = torch.from_numpy(visible(batch))
    if window is not None:
        depth = torch.from_numpy(batch.position_ids)
        rule = rule & (depth[:, None] - depth[None, :] < window)
    assert torch.equal(tree.mask(window), rule)
    covered = torch.zeros_like(rule)
    for block in tree.blocks(window):
        rows = torch.arange(block.start, block.stop)
        covered[rows[:, None], block.keys[None, :]] = block.seen
    assert torch.equal(covered, rule)


def attend(function: Any, inputs: tuple, tree: Tree, window: int | None, grad: torch.Tensor) -> list[torch.Tensor]:
    leaves = [tensor.clone().requires_grad_(function is not flex_tree_attention) for tensor in inputs]
    module = torch.nn.Module()
    out, weights = function(module, *leaves, None, tree=tree, scaling=0.3, sliding_window=window)
    assert weights is None
    if function is not flex_tree_attention:  # FlexAttention has no backward on a CPU
        out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("function", [block_tree_attention, flex_tree_attention])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("name", shapes())
def test_values_and_gradients_equal_the_dense_ones(
    name: str, window: int | None, heads: int, groups: int, function: Any
) -> None:
    tree = tree_of(shapes()[name])
    length = len(tree.subtree_end)
    draw = torch.Generator().manual_seed(length)
    dtype = torch.float32 if function is flex_tree_attention else torch.float64
    inputs = tuple(torch.randn(1, n, length, 16, generator=draw, dtype=dtype) for n in (heads, groups, groups))
    grad = torch.randn(1, length, heads, 16, generator=draw, dtype=dtype)
    expected = attend(dense_tree_attention, inputs, tree, window, grad)
    results = attend(function, inputs, tree, window, grad)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    for ours, theirs in zip(results, expected, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [None, 7])
def test_16_bits_see_the_same_through_blocks_of_round_sizes(window: int | None) -> None:
    tree = tree_of(shapes()["forks everywhere"])
    length = len(tree.subtree_end)
    draw = torch.Generator().manual_seed(1)
    exact = tuple(torch.randn(1, n, length, 16, generator=draw, dtype=torch.bfloat16) for n in (6, 2, 2))
    grad = torch.randn(1, length, 6, 16, generator=draw, dtype=torch.bfloat16)
    expected = attend(dense_tree_attention, tuple(x.double() for x in exact), tree, window, grad.double())
    results = attend(block_tree_attention, exact, tree, window, grad)
    sizes = {len(block.keys) for block, _ in attention._blocks_with_bias(tree, window, 3, torch.bfloat16)}
    assert all(size % round_rows("cpu", torch.bfloat16) == 0 for size in sizes)
    for ours, theirs in zip(results, expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.01


def test_what_a_tree_cannot_compute_is_refused() -> None:
    tree = tree_of([text(1, 2, 3)])
    heads = [torch.randn(1, 2, 3, 8) for _ in range(3)]
    for function in (dense_tree_attention, block_tree_attention, flex_tree_attention):
        with pytest.raises(ValueError, match="softcap"):
            function(torch.nn.Module(), *heads, None, tree=tree, softcap=30.0)
        with pytest.raises(ValueError, match="keyword arguments"):
            function(torch.nn.Module(), *heads, None)


def test_a_block_needs_only_the_ancestors_of_its_first_row() -> None:
    """The cost of a long conversation stays that of a triangle, and forks do not see each other's keys."""
    forks = tree_of([text(*(0,) * 10, *(k,) * 54) for k in range(1, 41)])
    assert max(len(block.keys) for block in forks.blocks()) <= BLOCK_ROWS + 64
