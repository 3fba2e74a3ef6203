"""Layouts: whole groups in micro-batches, as for examples."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.preference.groups import groups
from weitune.data.layout import SEPARATE_GROUPS, SHARED_GROUPS, Layout
from weitune.data.preference.values import Group


@pytest.mark.parametrize("layout", [SHARED_GROUPS, SEPARATE_GROUPS], ids=["shared", "separate"])
@given(drawn=groups(), micro_tokens=st.integers(1, 40))
def test_groups_stay_whole_and_within_the_limit(layout: Layout, drawn: list[Group], micro_tokens: int) -> None:
    batches = layout.split(drawn, micro_tokens)
    assert Counter(group for batch in batches for group in batch) == Counter(drawn)
    assert all(len(layout.lay(batch)) <= micro_tokens for batch in batches if len(batch) > 1)
    assert layout.split(drawn[::-1], micro_tokens) == batches


@pytest.mark.parametrize("layout", [SHARED_GROUPS, SEPARATE_GROUPS], ids=["shared", "separate"])
@given(drawn=groups(), tokens=st.integers(1, 8))
def test_longer_ones_are_kept_apart(layout: Layout, drawn: list[Group], tokens: int) -> None:
    batches = layout.apart(tokens).split(drawn, 40)
    assert Counter(group for batch in batches for group in batch) == Counter(drawn)
    for batch in batches:
        assert len({any(len(answer.inputs) > tokens for answer in group.answers) for group in batch}) == 1
