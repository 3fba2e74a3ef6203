"""How long passes on a CPU are."""

from __future__ import annotations

import pytest

from weitune.data.conversation import Example, Span
from weitune.data.layout import SHARED
from weitune.data.schedule import Plan
from weitune.forecast.workload import most_tokens_on_cpu


def examples(shared: int, own: int) -> list[Example]:
    """Return 64 examples that begin with the same ``shared`` tokens and go on with ``own`` tokens each."""
    beginning = range(1, shared + 1)
    ends = [[1000 + n, *range(2000, 2000 + own - 1)] for n in range(64)]
    return [Example((*beginning, *end), (Span(shared + own - 5, shared + own),)) for end in ends]


@pytest.mark.parametrize(
    ("shared", "own", "most"),
    [
        (10, 60, 832),  # two passes a step compute ten tokens more
        (0, 60, 832),
        (300, 60, 2048),  # and here three hundred
        (0, 20, 832),  # no step has more
    ],
)
def test_passes_are_short_where_that_costs_little(shared: int, own: int, most: int) -> None:
    items = examples(shared, own)
    assert most_tokens_on_cpu(items, Plan(len(items), 16, 1, 42, None), SHARED) == most


def test_each_process_has_its_share_of_a_step() -> None:
    items = examples(300, 40)
    plan = Plan(len(items), 16, 1, 42, None)
    assert most_tokens_on_cpu(items, plan, SHARED) == 2048
    assert most_tokens_on_cpu(items, plan, SHARED, processes=2) == 832
