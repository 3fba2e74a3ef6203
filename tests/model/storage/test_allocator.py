"""Large matrices are outside the heap, are reused, and go back to the system on demand."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.forecast.test_memory_estimate import MIB, resident
from weitune.model.storage.allocator import empty_outside_heap, release_freed_memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 3, 30_000])
def test_has_the_form_that_was_asked_for_and_can_be_written(rows: int, dtype: torch.dtype) -> None:
    with empty_outside_heap(rows, 1000, torch.zeros(1, dtype=dtype)) as matrix:
        assert (matrix.shape, matrix.dtype, matrix.is_contiguous()) == ((rows, 1000), dtype, True)
        assert bool((matrix.fill_(2) == 2).all())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is an ordinary tensor")
def test_stays_for_the_next_one_that_fits_and_goes_back_on_demand() -> None:
    like = torch.zeros(1)
    release_freed_memory()
    before = resident("RssAnon")
    with empty_outside_heap(64, MIB, like) as matrix:
        matrix.fill_(1)
        address = matrix.data_ptr()
        with empty_outside_heap(64, MIB, like) as another:
            assert another.data_ptr() != address  # the same memory is not lent twice at once
    del matrix, another
    assert resident("RssAnon") - before > 200 * MIB
    with empty_outside_heap(32, MIB, like) as smaller:
        assert smaller.data_ptr() == address
    del smaller
    with empty_outside_heap(65, MIB, like) as larger:  # the old one is gone before the new one is written
        assert resident("RssAnon") - before < 20 * MIB
        larger.fill_(1)
    del larger
    assert resident("RssAnon") - before > 200 * MIB
    release_freed_memory()
    assert resident("RssAnon") - before < 20 * MIB
