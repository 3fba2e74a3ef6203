"""Kept examples survive the way to the disk, and damage is seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weitune.data.conversation import Example, Span
from weitune.data.keep.kept import JoinedExamples, KeptExamples


@st.composite
def kept_examples(draw: st.DrawFn) -> list[Example]:
    soft = draw(st.booleans())
    made = []
    for _ in range(draw(st.integers(1, 5))):
        tokens = tuple(draw(st.lists(st.integers(0, 99), min_size=2, max_size=9)))
        start = draw(st.integers(1, len(tokens) - 1))
        share = draw(st.integers(0, 1024)) / 1024
        alternatives = tuple(((token, share), (99 - token, share / 2)) for token in tokens[start:]) if soft else ()
        made.append(Example(tokens, (Span(start, len(tokens)),), alternatives=alternatives))
    return made


@given(kept_examples())
def test_they_are_read_as_they_were_written(examples: list[Example]) -> None:
    kept = KeptExamples(examples)
    again = KeptExamples.from_bytes(kept.to_bytes())
    assert [again[i] for i in range(len(again))] == examples
    assert again.digest() == kept.digest()
    assert again.lengths.tolist() == [len(example.input_ids) for example in examples]
    assert again.supervised.tolist() == [example.supervised for example in examples]


@given(kept_examples(), kept_examples())
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
