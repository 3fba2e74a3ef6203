"""A convolution along the paths equals one over each conversation alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.model.fast.recurrent.test_scan import assert_close, with_gradients
from tests.model.fast.recurrent.trees import CPU, rows
from weitune.data.conversation import Example, Span
from weitune.data.pack import PackedBatch, pack
from weitune.model.fast.recurrent.chunks import PathWindows
from weitune.model.fast.recurrent.path_conv import path_conv, read_taps
from weitune.model.fast.recurrent.reference import reference_path_conv
from weitune.model.fast.tree import Tree

CHANNELS = 3


def convolution(taps: int, bias: bool) -> nn.Conv1d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Conv1d(CHANNELS, CHANNELS, taps, groups=CHANNELS, padding=taps - 1, bias=bias).double()
    return made.requires_grad_(False)


@settings(max_examples=60)
@given(rows(), st.integers(1, 5), st.booleans())
def test_it_equals_its_readable_twin(row: PackedBatch, count: int, bias: bool) -> None:
    module = convolution(count, bias)
    taps = read_taps(module)
    assert taps is not None
    x = torch.randn(len(row), CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = with_gradients(path_conv, [x], taps, PathWindows.of(Tree.from_batch(row, CPU), count))
    weight = module.weight.squeeze(1)
    assert_close(ours, with_gradients(reference_path_conv, [x], weight, module.bias, row.position_ids), 1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_along_a_line_it_is_the_module_itself(length: int) -> None:
    module = convolution(4, bias=True)
    row = pack([Example(tuple(range(length + 1)), (Span(length, length + 1),))])
    x = torch.randn(length, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theirs = module(x.T[None])[0, :, :length].T
    taps = read_taps(module)
    assert taps is not None
    assert torch.allclose(path_conv(x, taps, PathWindows.of(Tree.from_batch(row, CPU), 4)), theirs, atol=1e-12)


def test_other_convolutions_are_not_taken_for_one() -> None:
    assert read_taps(nn.Conv1d(4, 4, 3)) is None  # channels are mixed
    assert read_taps(nn.Conv1d(4, 8, 3, groups=4)) is None
    assert read_taps(nn.Conv1d(4, 4, 3, groups=4, dilation=2)) is None
    assert read_taps(nn.Linear(4, 4)) is None
