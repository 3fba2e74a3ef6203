"""What is held out was never learned: prompts and rows stay together, and neither order nor seed decides."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weitune.data.conversation import Example, Origin, Span
from weitune.data.prepare.holdout import hold_out
from weitune.errors import DataError


class InMemory:
    """A set of examples as a list."""

    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples
        self.lengths = np.array([len(e.input_ids) for e in examples], np.int32)
        self.supervised = np.array([e.supervised for e in examples], np.int32)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Example:
        return self.examples[i]

    def digest(self) -> str:
        return str(hash(tuple(self.examples)))


def example(prompt: int, answer: int, row: int) -> Example:
    return Example((1, prompt, answer), (Span(2, 3),), Origin("rows.json", row))


def contents(selection: object) -> list[tuple[int, ...]]:
    return sorted(selection[i].input_ids for i in range(len(selection)))  # type: ignore[index,arg-type]


@given(
    prompts=st.lists(st.integers(0, 12), min_size=3, max_size=60).filter(lambda p: len(set(p)) > 1),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_no_prompt_is_on_both_sides_and_nothing_is_lost(prompts: list[int], fraction: float, seed: int) -> None:
    rows = [example(prompt, n, n) for n, prompt in enumerate(prompts)]
    learned, held = hold_out(InMemory(rows), fraction)
    assert sorted(contents(learned) + contents(held)) == sorted(e.input_ids for e in rows)
    assert len(learned)
    assert len(held)
    assert not {ids[1] for ids in contents(learned)} & {ids[1] for ids in contents(held)}
    most = max(prompts.count(prompt) for prompt in prompts)
    assert len(held) < fraction * len(rows) + 1 + most
    assert list(held.lengths) == [3] * len(held)

    shuffled = rows[:]
    random.Random(seed).shuffle(shuffled)
    assert {ids[1] for ids in contents(hold_out(InMemory(shuffled), fraction)[1])} == {ids[1] for ids in contents(held)}


def test_examples_of_one_row_stay_together() -> None:
    rows = [Example((n, turn), (Span(1, 2),), Origin("a", n)) for n in range(20) for turn in (1, 2, 3)]
    longer = [Example((*e.input_ids, 7), (Span(2, 3),), e.origin) for e in rows]  # a later turn: another prompt
    both = [e for pair in zip(rows, longer, strict=True) for e in pair]
    learned, held = hold_out(InMemory(both), 0.3)
    assert 10 < len(held) < 60
    assert not {held[i].origin for i in range(len(held))} & {learned[i].origin for i in range(len(learned))}


@pytest.mark.parametrize("turns", [1, 4])
def test_a_prompt_that_many_rows_share_is_learned(turns: int) -> None:
    """Whatever number it has, and so wherever its SHA-256 comes in the order."""
    for shared in range(100, 120):
        asked = [shared] * 40 + [shared + 1] * 3 + list(range(1, 61))
        rows = [example(prompt, turn, n) for n, prompt in enumerate(asked) for turn in range(turns)]
        learned, held = hold_out(InMemory(rows), 0.3)
        assert len(learned) + len(held) == turns * len(asked)
        assert sum(ids[1] == shared for ids in contents(learned)) == 40 * turns
        assert len(held) == pytest.approx(0.3 * len(rows), abs=turns)


def test_a_prompt_that_many_rows_share_is_held_out_if_there_are_no_others() -> None:
    rows = [example(n % 2, n, n) for n in range(40)]
    learned, held = hold_out(InMemory(rows), 0.1)
    assert len(learned) == len(held) == 20


def test_one_prompt_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="all 4 examples have the same prompt"):
        hold_out(InMemory([example(1, n, n) for n in range(4)]), 0.5)


def test_the_digest_says_what_was_selected() -> None:
    rows = InMemory([example(n, n, n) for n in range(30)])
    digests = {part.digest() for fraction in (0.1, 0.4) for part in hold_out(rows, fraction)}
    assert len(digests) == 4
    assert hold_out(rows, 0.1)[1].digest() in digests
