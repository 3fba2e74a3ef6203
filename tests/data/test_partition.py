"""Micro-batches and shares hold every example once, and the largest is as small as a cut can make it."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from tests.data.examples import example, examples
from weitune.data.conversation import Example
from weitune.data.pack import pack
from weitune.data.partition import share, split


@given(examples, st.integers(1, 40))
def test_micro_batches_hold_every_example_once_and_fit(batch_examples: list[Example], micro_tokens: int) -> None:
    batches = split(batch_examples, micro_tokens)
    assert Counter(e for batch in batches for e in batch) == Counter(batch_examples)
    for batch in batches:
        assert len(pack(batch)) <= micro_tokens or len(batch) == 1 or len({e.inputs for e in batch}) == 1


@given(st.lists(example(), min_size=1, max_size=7), st.integers(1, 4))
def test_shares_are_whole_and_the_largest_is_as_small_as_a_cut_can_make_it(
    batch_examples: list[Example], devices: int
) -> None:
    shares = share(batch_examples, devices)
    assert len(shares) == devices
    assert [e for part in shares for e in part] == in_order(batch_examples)
    assert largest(shares) == min(map(largest, cuts(batch_examples, most=devices)))


@given(st.lists(example(), min_size=1, max_size=7), st.integers(1, 25))
def test_micro_batches_are_few_and_the_largest_is_as_small_as_a_cut_can_make_it(
    batch_examples: list[Example], micro_tokens: int
) -> None:
    found = split(batch_examples, micro_tokens)
    assert [e for part in found for e in part] == in_order(batch_examples)
    fitting = [
        cut
        for cut in cuts(batch_examples, most=len(batch_examples))
        if all(len(part) == 1 or len(pack(part)) <= micro_tokens for part in cut)
    ]
    assert found in fitting
    assert (len(found), largest(found)) == min((len(cut), largest(cut)) for cut in fitting)


def in_order(batch_examples: list[Example]) -> list[Example]:
    return sorted(batch_examples, key=lambda e: (e.input_ids, e.spans))


def largest(parts: list[list[Example]]) -> int:
    return max(len(pack(part)) for part in parts if part)


def cuts(batch_examples: list[Example], *, most: int) -> Iterator[list[list[Example]]]:
    """Yield every way to cut the examples into at most ``most`` parts."""
    ordered = in_order(batch_examples)
    for count in range(most):
        for inner in combinations(range(1, len(ordered)), count):
            yield [ordered[a:b] for a, b in zip((0, *inner), (*inner, len(ordered)), strict=True)]
