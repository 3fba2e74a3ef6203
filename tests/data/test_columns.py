"""Columns have the same examples as the list that they were made of, whatever is done with them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weitune.data.columns import ExampleColumns, Places, ends_of
from weitune.data.conversation import Example, Origin, Span


@st.composite
def examples(draw: st.DrawFn) -> Example:
    tokens = draw(st.lists(st.integers(0, 2**31 - 1), max_size=6))
    edges = sorted(draw(st.sets(st.integers(1, len(tokens)), max_size=4))) if tokens else []
    pairs = zip(edges[::2], edges[1::2], strict=False)
    weights = st.sampled_from([1.0, 0.25, 3.0])
    return Example(tuple(tokens), tuple(Span(start, stop, draw(weights)) for start, stop in pairs))


def listed(columns: ExampleColumns) -> list[Example]:
    return [columns.example(i) for i in range(len(columns))]


LISTS = st.lists(examples(), max_size=6)


@given(given_examples=LISTS)
def test_examples_and_their_facts_come_back(given_examples: list[Example]) -> None:
    columns = ExampleColumns.of(given_examples)
    assert listed(columns) == given_examples
    assert columns.lengths.tolist() == [example.tokens for example in given_examples]
    assert columns.supervised.tolist() == [example.supervised for example in given_examples]
    assert columns.weight.tolist() == [example.weight for example in given_examples]
    numbers = (columns.tokens, columns.ends, columns.starts, columns.stops, columns.span_ends)
    assert {array.dtype for array in numbers} == {np.dtype(np.int32)}


@given(lists=st.lists(LISTS, min_size=1, max_size=4), data=st.data())
def test_parts_and_joins_are_those_of_lists(lists: list[list[Example]], data: st.DataObject) -> None:
    together = [example for each in lists for example in each]
    joined = ExampleColumns.joined([ExampleColumns.of(each) for each in lists])
    assert listed(joined) == together
    start = data.draw(st.integers(0, len(together)))
    stop = data.draw(st.integers(start, len(together)))
    part = joined.part(start, stop)
    assert listed(part) == together[start:stop]
    assert part.ends[0] == part.span_ends[0] == 0


@given(given_examples=LISTS, data=st.data())
def test_a_weight_multiplies_and_nothing_weighs_nothing(given_examples: list[Example], data: st.DataObject) -> None:
    factors = [data.draw(st.sampled_from([0.0, 0.5, 2.0])) for _ in given_examples]
    weighted = ExampleColumns.of(given_examples).weighted(np.array(factors, float))
    assert listed(weighted) == [
        Example(example.input_ids, tuple(Span(a, b, weight * factor) for a, b, weight in example.spans if factor))
        for example, factor in zip(given_examples, factors, strict=True)
    ]


def test_places_are_repeated_for_each_example_of_a_row() -> None:
    places = Places.of([(0, Origin("a.json", 7)), (2, Origin("b.jsonl", 3, 9)), (1, None)]).repeated(
        np.array([2, 0, 1])
    )
    assert [column.tolist() for column in places] == [[0, 0, 1], [7, 7, 0], [0, 0, 0]]
    assert [column.tolist() for column in Places.of([])] == [[], [], []]


def test_ends_of_nothing() -> None:
    assert ends_of([]).tolist() == [0]
