"""Kept examples survive the way to the disk, and damage is seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weitune.data.conversation import Example, Span
from weitune.data.keep.kept import JoinedExamples, KeptExamples, Softened


@st.composite
def examples(draw: st.DrawFn) -> list[Example]:
    made = []
    for _ in range(draw(st.integers(1, 5))):
        tokens = tuple(draw(st.lists(st.integers(0, 99), min_size=2, max_size=9)))
        made.append(Example(tokens, (Span(draw(st.integers(1, len(tokens) - 1)), len(tokens)),)))
    return made


@given(examples())
def test_they_are_read_as_they_were_written(made: list[Example]) -> None:
    kept = KeptExamples(made)
    again = KeptExamples.from_bytes(kept.to_bytes())
    assert [again[i] for i in range(len(again))] == made
    assert again.digest() == kept.digest()
    assert again.lengths.tolist() == [len(example.input_ids) for example in made]
    assert again.supervised.tolist() == [example.supervised for example in made]


@given(examples())
def test_each_learned_token_has_its_own_alternatives(made: list[Example]) -> None:
    learned = [token for example in made for token in example.input_ids[example.spans[0].start :]]
    choices = np.array([[token, 99 - token] for token in learned], np.int32)
    shares = np.array([[token / 128, 0.125] for token in learned], np.float32)
    kept = KeptExamples.from_bytes(KeptExamples(made, Softened(choices, shares)).to_bytes())
    for example, soft in zip(made, [kept[i] for i in range(len(kept))], strict=True):
        tokens = example.input_ids[example.spans[0].start :]
        assert soft.alternatives == tuple(((token, token / 128), (99 - token, 0.125)) for token in tokens)
    with pytest.raises(ValueError, match="do not fit"):
        KeptExamples(made, Softened(choices[1:], shares))


@given(examples(), examples())
def test_joined_examples_come_after_a_runs_own(own: list[Example], kept: list[Example]) -> None:
    joined = JoinedExamples(KeptExamples(own), KeptExamples(kept))
    assert [joined[i] for i in range(len(joined))] == own + kept
    assert joined.lengths.tolist() == [len(example.input_ids) for example in own + kept]


def test_damage_is_a_value_error() -> None:
    contents = KeptExamples([Example((1, 2, 3), (Span(1, 3),))]).to_bytes()
    for damaged in (b"", contents[:-1], contents.replace(b"starts", b"strats")):
        with pytest.raises(ValueError):  # noqa: PT011  (whatever it says)
            KeptExamples.from_bytes(damaged)


def test_only_the_end_of_an_example_can_be_kept() -> None:
    with pytest.raises(ValueError, match="its end"):
        KeptExamples([Example((1, 2, 3), (Span(1, 2),))])
