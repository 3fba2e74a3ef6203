"""The recurrent parts with a backward of their own, by numeric gradients in float64: on a tree, in several chunks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.model.fast.recurrent.test_layers import recurrence
from tests.model.fast.recurrent.test_scan import drawn
from tests.model.fast.recurrent.trees import CPU, chunks_of
from weitune.data.conversation import Example, Span
from weitune.data.pack import PackedBatch, pack
from weitune.model.fast.recurrent.chunks import PathWindows
from weitune.model.fast.recurrent.path_conv import path_conv, read_taps
from weitune.model.fast.recurrent.recomputed import recomputed
from weitune.model.fast.recurrent.scan import gated_delta_rule, state_space
from weitune.model.fast.self_attention.positions import Positions
from weitune.model.fast.tree import Tree

CHUNK = 2


def forked_row() -> PackedBatch:
    """Return a row of three conversations: two have three tokens in common, one begins by itself."""
    texts = (1, 2, 3, 4, 5, 6), (1, 2, 3, 7, 8), (9, 10, 11, 12)
    return pack([Example(text, (Span(1, len(text)),)) for text in texts])


def leaves_of(tensors: list[Tensor]) -> list[Tensor]:
    return [each.clone().requires_grad_() for each in tensors]


@pytest.mark.parametrize("delta", [True, False], ids=["delta rule", "state space"])
def test_scan(delta: bool) -> None:
    row = forked_row()
    chunks, inputs = chunks_of(row, CHUNK), leaves_of(drawn(row, 1, torch.float64))
    assert len(chunks.levels) > 1
    if delta:
        assert torch.autograd.gradcheck(lambda *x: gated_delta_rule(*x, chunks), inputs)
    else:
        assert torch.autograd.gradcheck(lambda *x: state_space(*x, chunks), inputs[:4])


@pytest.mark.parametrize("count", [2, 4])
def test_path_conv(count: int) -> None:
    row, draw = forked_row(), torch.Generator().manual_seed(1)
    taps = read_taps(nn.Conv1d(3, 3, count, groups=3).double().requires_grad_(False))
    assert taps is not None
    windows = PathWindows.of(Tree.from_batch(row, CPU), count)
    assert len(windows.rows) > 1
    x = torch.randn(len(row), 3, dtype=torch.float64, generator=draw).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: path_conv(x, taps, windows), (x,))


@pytest.mark.parametrize("family", ["qwen3_5_text", "qwen3_next", "falcon_h1", "nemotron_h_dense"])
def test_what_is_computed_again(family: str) -> None:
    """The delta rule with projections apart and together, the state space in one group and in two."""
    layer, draw = recurrence(family), torch.Generator().manual_seed(2)
    tree = replace(Tree.from_batch(forked_row(), CPU), chunk_tokens=CHUNK, heads_at_once=1)
    positions = Positions({}, tree)
    widths = [projection.shape[0] for projection in layer.inputs.projections]
    projected = [torch.randn(len(forked_row()), width, dtype=torch.float64, generator=draw) for width in widths]

    def output(*leaves: Tensor) -> Tensor:
        return recomputed(layer.middle, leaves, positions)

    assert torch.autograd.gradcheck(output, leaves_of(projected), atol=1e-9, fast_mode=True)
