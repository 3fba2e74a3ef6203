"""Every tree attention against the dense definition: values, gradients, windows, sinks, caps, grouped heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.invariant.test_oracle import examples_with_forks
from weitune.data.conversation import Example, Span
from weitune.data.pack import pack, visible
from weitune.model.fast.attention import block_tree_attention, dense_tree_attention, flex_tree_attention
from weitune.model.fast.kernels.blocks import Written, blocks_with_bias
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


def attend(
    function: Any, inputs: tuple, tree: Tree, grad: torch.Tensor, window: int | None = None, **formula: Any
) -> list[torch.Tensor]:
    leaves = [tensor.clone().requires_grad_(function is not flex_tree_attention) for tensor in inputs]
    module = torch.nn.Module()
    out, weights = function(module, *leaves, None, tree=tree, scaling=0.3, sliding_window=window, **formula)
    assert weights is None
    if function is not flex_tree_attention:  # FlexAttention has no backward on a CPU
        out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def formula(name: str, heads: int) -> dict[str, Any]:
    """Return the keyword arguments that models with such a formula pass."""
    sinks = torch.linspace(-2, 3, heads, dtype=torch.float64)
    return {"plain": {}, "sinks": {"s_aux": sinks}, "cap": {"softcap": 1.5}, "both": {"s_aux": sinks, "softcap": 1.5}}[
        name
    ]


@pytest.mark.parametrize("kind", ["plain", "sinks", "cap", "both"])
@pytest.mark.parametrize("function", [block_tree_attention, flex_tree_attention])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("name", shapes())
def test_values_and_gradients_equal_the_dense_ones(
    name: str, window: int | None, heads: int, groups: int, function: Any, kind: str
) -> None:
    tree = tree_of(shapes()[name])
    length = len(tree.subtree_end)
    draw = torch.Generator().manual_seed(length)
    dtype = torch.float32 if function is flex_tree_attention else torch.float64
    inputs = tuple(torch.randn(1, n, length, 16, generator=draw, dtype=dtype) for n in (heads, groups, groups))
    grad = torch.randn(1, length, heads, 16, generator=draw, dtype=dtype)
    expected = attend(dense_tree_attention, inputs, tree, grad, window, **formula(kind, heads))
    results = attend(function, inputs, tree, grad, window, **formula(kind, heads))
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    for ours, theirs in zip(results, expected, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["plain", "both"])
@pytest.mark.parametrize("function", [dense_tree_attention, block_tree_attention, flex_tree_attention])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("name", ["a fork deep inside", "forks everywhere"])
def test_some_rows_attend_as_they_do_among_all(name: str, window: int | None, function: Any, kind: str) -> None:
    tree = tree_of(shapes()[name])
    length = len(tree.subtree_end)
    draw = torch.Generator().manual_seed(0)
    dtype = torch.float32 if function is flex_tree_attention else torch.float64
    query, *rest = (torch.randn(1, n, length, 16, generator=draw, dtype=dtype) for n in (6, 2, 2))
    rows = torch.randperm(length, generator=draw)[: max(2 * BLOCK_ROWS, length // 2)]
    grad = torch.randn(1, len(rows), 6, 16, generator=draw, dtype=dtype)
    among_all = torch.zeros(1, length, 6, 16, dtype=dtype).index_copy_(1, rows, grad)
    expected = attend(dense_tree_attention, (query, *rest), tree, among_all, window, **formula(kind, 6))
    results = attend(function, (query[:, :, rows], *rest), tree.only(rows), grad, window, **formula(kind, 6))
    taken = [expected[0][:, rows], expected[1][:, :, rows], *expected[2:]]
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    for ours, theirs in zip(results, taken, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("kind", ["plain", "sinks", "cap"])
def test_16_bits_see_the_same_through_blocks_of_round_sizes(window: int | None, kind: str) -> None:
    tree = tree_of(shapes()["forks everywhere"])
    length = len(tree.subtree_end)
    draw = torch.Generator().manual_seed(1)
    exact = tuple(torch.randn(1, n, length, 16, generator=draw, dtype=torch.bfloat16) for n in (6, 2, 2))
    grad = torch.randn(1, length, 6, 16, generator=draw, dtype=torch.bfloat16)
    doubles = tuple(x.double() for x in exact)
    expected = attend(dense_tree_attention, doubles, tree, grad.double(), window, **formula(kind, 6))
    results = attend(block_tree_attention, exact, tree, grad, window, **formula(kind, 6))
    sizes = {len(block.keys) for block, _ in blocks_with_bias(tree, window, 3, torch.bfloat16)}
    assert all(size % round_rows("cpu", torch.bfloat16) == 0 for size in sizes)
    for ours, theirs in zip(results, expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.015


@pytest.mark.parametrize("kind", ["plain", "sinks", "cap", "both"])
@pytest.mark.parametrize("sizes", [(8, 8), (12, 8)], ids=["equal", "unequal"])
def test_gradcheck_with_heads_of_equal_and_unequal_size(sizes: tuple[int, int], kind: str) -> None:
    tree = tree_of([text(*range(66), 1, 2), text(*range(66), 3), text(9, 9)])
    length = len(tree.subtree_end)
    draw = torch.Generator().manual_seed(0)
    size, value_size = sizes
    shapes = (4, size), (2, size), (2, value_size)
    leaves = [
        torch.randn(1, heads, length, size, generator=draw, dtype=torch.float64, requires_grad=True)
        for heads, size in shapes
    ]
    options = formula(kind, 4)
    if "s_aux" in options:
        leaves.append(options.pop("s_aux").requires_grad_())

    def output(function: Any, query: Any, key: Any, value: Any, s_aux: Any = None) -> torch.Tensor:
        out: torch.Tensor = function(
            torch.nn.Module(),
            query,
            key,
            value,
            None,
            tree=tree,
            scaling=0.4,
            s_aux=s_aux,
            sliding_window=50,
            **options,
        )[0]
        return out

    assert torch.autograd.gradcheck(lambda *x: output(block_tree_attention, *x), leaves, fast_mode=True)
    torch.testing.assert_close(output(block_tree_attention, *leaves), output(dense_tree_attention, *leaves))


def test_dropout_of_weights_is_that_of_the_dense_definition() -> None:
    tree = tree_of(shapes()["forks everywhere"])
    inputs = tuple(torch.randn(1, 2, len(tree.subtree_end), 8) for _ in range(3))
    torch.manual_seed(0)
    grad = torch.randn(1, len(tree.subtree_end), 2, 8)
    results = []
    for function in (dense_tree_attention, block_tree_attention):
        torch.manual_seed(1)
        results.append(attend(function, inputs, tree, grad, dropout=0.5, **formula("sinks", 2)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_16_bits_compute_scores_in_float32() -> None:
    """A score of 20 in bfloat16 is off by up to 0.06."""
    draw = torch.Generator().manual_seed(0)
    query, key = (3 * torch.randn(1, 1, 64, 64, generator=draw).bfloat16() for _ in range(2))
    for cap in (None, 50.0):
        scores, _ = Written(0.125, cap)._scores(query, key)
        products = 0.125 * (query.double() @ key.double().mT)
        expected = products if cap is None else cap * torch.tanh(products / cap)
        assert float(expected.abs().max()) > 16
        assert float((scores - expected).abs().max()) < 1e-4


def test_what_a_tree_cannot_compute_is_refused() -> None:
    tree = tree_of([text(1, 2, 3)])
    heads = [torch.randn(1, 2, 3, 8) for _ in range(3)]
    for function in (dense_tree_attention, block_tree_attention, flex_tree_attention):
        with pytest.raises(ValueError, match="position_bias"):
            function(torch.nn.Module(), *heads, None, tree=tree, position_bias=torch.zeros(1, 2, 3, 3))
        with pytest.raises(ValueError, match="keyword arguments"):
            function(torch.nn.Module(), *heads, None)


def test_a_block_needs_only_the_ancestors_of_its_first_row() -> None:
    """The cost of a long conversation stays that of a triangle, and forks do not see each other's keys."""
    forks = tree_of([text(*(0,) * 10, *(k,) * 54) for k in range(1, 41)])
    assert max(len(block.keys) for block in forks.blocks()) <= BLOCK_ROWS + 64
