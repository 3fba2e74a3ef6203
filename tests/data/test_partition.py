"""Micro-batches and shares hold every example once, and the largest is as small as a cut can make it."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.data.examples import example, examples, groups
from weitune.data.conversation import Example, Span
from weitune.data.pack import pack
from weitune.data.partition import distinct_tokens, share, share_groups, split, split_groups
from weitune.data.preference.values import Group, examples_in


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


@given(groups, st.integers(1, 60), st.randoms())
def test_micro_batches_hold_every_group_whole_and_fit(step: list[Group], micro_tokens: int, random: Random) -> None:
    batches = split_groups(step, micro_tokens)
    assert Counter(group for batch in batches for group in batch) == Counter(step)
    for batch in batches:
        assert len(batch) == 1 or distinct_tokens(examples_in(batch)) <= micro_tokens
    shuffled = random.sample(step, len(step))
    assert split_groups(shuffled, micro_tokens) == batches


@given(groups, st.integers(1, 4))
def test_shares_hold_every_group_whole(step: list[Group], devices: int) -> None:
    shares = share_groups(step, devices)
    assert share_groups([], devices) == [[]] * devices  # KTO: a group alone in its step has no mismatched answer
    assert len(shares) == devices
    assert Counter(group for part in shares for group in part) == Counter(step)


@given(examples)
def test_distinct_tokens_are_those_of_the_packed_row(batch_examples: list[Example]) -> None:
    assert distinct_tokens(batch_examples) == len(pack(batch_examples))


def test_groups_with_one_prompt_stay_together() -> None:
    def pair(prompt: tuple[int, ...], chosen: int, rejected: int) -> Group:
        answers = (Example((*prompt, token, 0), (Span(len(prompt), len(prompt) + 2),)) for token in (chosen, rejected))
        return Group(tuple(answers), (True, False))

    first, second = (1,) * 10, (2,) * 10
    step = [pair(first, 3, 4), pair(second, 3, 4), pair(first, 5, 6), pair(second, 5, 6)]
    assert split_groups(step, 14) == [[step[0], step[2]], [step[1], step[3]]]
    assert share_groups(step, 2) == [[step[0], step[2]], [step[1], step[3]]]


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
