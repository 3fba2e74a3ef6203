"""Whole recurrent layers: a packed row equals its conversations apart, and whole models equal their own modules."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.families import RECURRENT, family_model
from tests.model.fast.recurrent.trees import CPU, long_row, rows
from weitune.data.pack import PackedBatch, visible
from weitune.model.decoder_of import decoder_of
from weitune.model.fast.channel.side_by_side import SideBySide
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.parts import BlockContext
from weitune.model.fast.recurrent.mixer import Recurrence
from weitune.model.fast.self_attention.positions import Positions
from weitune.model.fast.tree import Tree
from weitune.model.lora.adapter import attach_adapter
from weitune.recipe.schema import Lora

WITHOUT_EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_next": {"mlp_only_layers": [0, 1]},
    "granitemoehybrid": {"num_local_experts": 0},
}
"""What makes a family of mixtures one without: routers compute in float32 in every format."""
IN_FLOAT64 = [name for name in RECURRENT if name not in {"qwen3_5_moe_text", "lfm2_moe"}]
"""The families but for mixtures whose recurrent layers another family has."""


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


@pytest.mark.parametrize("family", RECURRENT)
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


@cache
def adapted(family: str) -> tuple[BlockDecoder, list[nn.Parameter]]:
    """Return the blocks of ``family`` in float64 without a last norm, and their adapters' weights, none zero."""
    model = family_model(family, **WITHOUT_EXPERTS.get(family, {}))
    decoder = BlockDecoder.from_model(model)
    attach_adapter(model.requires_grad_(False), Lora(dropout=0.0), seed=0, base="")
    model.double()
    blocks = decoder and decoder.with_adapters(torch.float64)
    assert blocks is not None
    blocks.module.norm = nn.Identity()  # models have their last norm in float32 only
    trained, draw = [each for each in model.parameters() if each.requires_grad], torch.Generator().manual_seed(1)
    for each in trained:
        each.data = 0.1 * torch.randn(each.shape, dtype=torch.float64, generator=draw)
    return blocks, trained


def assert_whole_models_equal(family: str, row: PackedBatch, size: int) -> None:
    """Compare a packed row with its conversations apart, in chunks of ``size``: last states and adapter gradients."""
    blocks, trained = adapted(family)
    ids, draw = torch.from_numpy(row.input_ids), torch.Generator().manual_seed(0)

    def states(own: Tensor, tree: Tree) -> Tensor:
        tree.chunk_tokens = size
        return blocks.states(ids[own], tree, torch.arange(len(own)), training=True)

    packed = states(torch.arange(len(row)), Tree.from_batch(row, CPU))
    total, weighted = packed.new_zeros(()), packed.new_zeros(())
    for own in conversations(row):
        line = torch.arange(len(own))
        alone = states(own, Tree(line, torch.full_like(line, len(own))))
        assert (alone - packed[own]).abs().max() < 1e-9 * packed.abs().max()
        weight = torch.randn(alone.shape, dtype=torch.float64, generator=draw)
        total, weighted = total + (alone * weight).sum(), weighted + (packed[own] * weight).sum()
    ours, theirs = (torch.autograd.grad(each, trained) for each in (weighted, total))
    rounding = 1e-12 * max(float(each.norm()) for each in theirs)
    assert all((a - b).norm() <= 1e-9 * b.norm() + rounding for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("family", IN_FLOAT64)
@settings(max_examples=3, deadline=None)
@given(row=rows(), size=st.integers(1, 9))
def test_whole_models_packed_equal_separate_and_so_do_the_adapters_gradients(
    family: str, row: PackedBatch, size: int
) -> None:
    assert_whole_models_equal(family, row, size)


@pytest.mark.parametrize("family", IN_FLOAT64)
def test_so_do_segments_about_as_long_as_a_chunk(family: str) -> None:
    assert_whole_models_equal(family, long_row(400), 64)


@pytest.mark.parametrize("family", RECURRENT)
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
