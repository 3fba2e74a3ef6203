"""A large matrix is mapped apart from the heap, and goes back to the system when it is forgotten."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.model.test_memory import MIB, resident
from weitune.model.allocator import empty_apart


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 3, 30_000])
def test_has_the_form_that_was_asked_for_and_can_be_written(rows: int, dtype: torch.dtype) -> None:
    matrix = empty_apart(rows, 1000, torch.zeros(1, dtype=dtype))
    assert (matrix.shape, matrix.dtype, matrix.is_contiguous()) == ((rows, 1000), dtype, True)
    assert bool((matrix.fill_(2) == 2).all())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is an ordinary tensor")
def test_goes_back_when_the_last_part_of_it_is_forgotten() -> None:
    before = resident("RssAnon")
    part = empty_apart(64, MIB, torch.zeros(1)).fill_(1)[:1]
    assert resident("RssAnon") - before > 200 * MIB
    assert float(part.sum()) == MIB
    del part
    assert resident("RssAnon") - before < 20 * MIB
