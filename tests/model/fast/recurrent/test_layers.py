"""Whole recurrent layers: a packed row equals its conversations apart, and whole models equal their own modules."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.families import FAST, HYBRID, family_model
from tests.model.fast.recurrent.trees import CPU, long_row, rows
from weitune.data.pack import PackedBatch, visible
from weitune.model.decoder_of import decoder_of
from weitune.model.fast.channel.side_by_side import SideBySide
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.parts import BlockContext
from weitune.model.fast.recurrent.mixer import Recurrence
from weitune.model.fast.self_attention.positions import Positions
from weitune.model.fast.tree import Tree

FAMILIES = [name for name in HYBRID if name in FAST]


@cache
def recurrence(family: str) -> Recurrence:
    """Return the first recurrent layer of ``family`` in float64."""
    model = family_model(family).requires_grad_(False)
    blocks = BlockDecoder.from_model(model)
    assert blocks is not None
    model.double()  # later: the model's own modules compute parts of these layers in float32
    mixers = [branch.mixer for part in blocks.parts for branch in part.branches]
    mixers += [branch.mixer for mixer in mixers if isinstance(mixer, SideBySide) for branch in mixer.branches]
    return next(mixer for mixer in mixers if isinstance(mixer, Recurrence))


def of_row(layer: Recurrence, x: Tensor, tree: Tree) -> Tensor:
    return layer.reference(x, BlockContext(Positions({}, tree), None))


def conversations(row: PackedBatch) -> list[Tensor]:
    """Return the rows of every conversation, from its first token to a last one."""
    seen = visible(row)
    leaves = [at for at in range(len(row)) if row.subtree_end[at] == at + 1]
    return [torch.from_numpy(seen[leaf].nonzero()[0]) for leaf in leaves]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=5, deadline=None)
@given(row=rows(), size=st.integers(1, 9))
def test_packed_equals_separate_and_so_do_the_gradients(family: str, row: PackedBatch, size: int) -> None:
    layer, draw = recurrence(family), torch.Generator().manual_seed(0)
    tree = Tree.from_batch(row, CPU)
    tree.chunk_tokens = size
    x = torch.randn(len(row), layer.inputs.inputs, dtype=torch.float64, generator=draw)
    apart, packed = x.clone().requires_grad_(), x.clone().requires_grad_()
    output = of_row(layer, packed, tree)
    total, weighted = output.new_zeros(()), output.new_zeros(())
    for own in conversations(row):
        line = torch.arange(len(own))
        alone = of_row(layer, apart[own], Tree(line, torch.full_like(line, len(own)), chunk_tokens=64))
        assert torch.allclose(alone, output[own], rtol=1e-9, atol=1e-9 * float(output.detach().abs().max()))
        weight = torch.randn(alone.shape, dtype=torch.float64, generator=draw)
        total, weighted = total + (alone * weight).sum(), weighted + (output[own] * weight).sum()
    total.backward()
    weighted.backward()
    assert apart.grad is not None
    assert packed.grad is not None
    assert (apart.grad - packed.grad).abs().max() < 1e-9 * apart.grad.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32_long_rows_are_near_to_what_the_modules_compute(family: str) -> None:
    model, row = family_model(family), long_row(2000)
    blocks = BlockDecoder.from_model(model)
    assert blocks is not None
    decoder: Any = decoder_of(model)
    ids = torch.from_numpy(row.input_ids)
    with torch.no_grad():
        ours = blocks.states(ids, Tree.from_batch(row, CPU), torch.arange(len(row)), training=False)
        for own in conversations(row)[::5]:
            theirs = decoder(input_ids=ids[own][None], use_cache=False).last_hidden_state[0]
            assert (ours[own] - theirs).norm() < 1e-3 * theirs.norm()
