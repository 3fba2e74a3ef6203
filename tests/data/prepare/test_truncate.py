"""A batch keeps what each of its rows keeps, and counts the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weitune.data.columns import ExampleColumns, ends_of
from weitune.data.conversation import Conversation, Example, Origin, Span, Turn
from weitune.data.prepare.accounts import RowCounts
from weitune.data.prepare.batches import EncodedRows
from weitune.data.prepare.truncate import kept_examples, truncate
from weitune.data.problems import Problems, data_problem, framing_error
from weitune.errors import DataError
from weitune.recipe.schema import Tokens

LIMIT = 4


@st.composite
def made(draw: st.DrawFn) -> Example | DataError:
    """Draw an example: short or long, learned or not, or one that could not be encoded."""
    if draw(st.integers(0, 9)) == 0:
        return framing_error(None, data_problem("data.encode.control_token_in_text", text="x"))
    length = draw(st.integers(2, 2 * LIMIT))
    start = draw(st.integers(1, length))
    return Example(tuple(range(length)), (Span(start, length),) if start < length else ())


def counted(accounts: RowCounts, problems: Problems) -> list[Any]:
    facts = [accounts.rows, accounts.examples, accounts.findings, accounts.places, accounts.duplicates.count()]
    return [*facts, list(problems), problems.rows]


@given(
    rows=st.lists(st.lists(made(), min_size=1, max_size=3), max_size=8),
    truncation=st.sampled_from(["drop", "cut", "error"]),
    weights=st.tuples(st.sampled_from([1.0, 0.0, 0.5]), st.just(1.0)),
)
def test_a_batch_keeps_what_its_rows_keep(rows: Any, truncation: Any, weights: tuple[float, float]) -> None:
    tokens = Tokens(max_length=LIMIT, truncation=truncation)
    conversations = [
        Conversation((Turn("user", f"{i % 3}"), Turn("assistant", " " * (i % 2))), (), Origin("a", i + 1))
        for i in range(len(rows))
    ]
    expected, places = [], []
    accounts, problems = RowCounts(), Problems()
    for i, (conversation, examples) in enumerate(zip(conversations, rows, strict=True)):
        own = [
            each if isinstance(each, DataError) else Example(
                each.input_ids, tuple(Span(a, b, weights[i % 2]) for a, b, _ in each.spans if weights[i % 2])
            )
            for each in examples
        ]  # fmt: skip
        kept = truncate(conversation, own, tokens, accounts, problems)
        expected += kept
        places += [[i % 2, i + 1, 0]] * len(kept)
    flat = [each for examples in rows for each in examples]
    batch = EncodedRows(
        [(i % 2, conversation) for i, conversation in enumerate(conversations)],
        ends_of([len(examples) for examples in rows]),
        ExampleColumns.of([each if isinstance(each, Example) else Example((), ()) for each in flat]),
        {i: each for i, each in enumerate(flat) if isinstance(each, DataError)},
    )
    together, found = RowCounts(), Problems()
    columns, read = kept_examples(batch, weights, tokens, together, found)
    assert [columns.example(i) for i in range(len(columns))] == expected
    assert np.stack(read).T.tolist() == places
    assert counted(together, found) == counted(accounts, problems)
