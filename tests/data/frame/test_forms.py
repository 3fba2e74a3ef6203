"""Forms: drafts of filled-in rows are those of rendered rows, for every template and whatever the rows contain."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.frame.families import FAMILIES
from tests.data.frame.families import tokenizer_of as family_tokenizer
from tests.data.frame.modern import MODERN, tokenizer_of
from weitune.data.conversation import Conversation, Origin, Turn
from weitune.data.frame import forms
from weitune.data.frame.chat import ChatFraming
from weitune.data.frame.forms import FormDiffers, FormDrafts
from weitune.errors import DataError
from weitune.recipe.schema import Tokens

NAMES = [*sorted(MODERN), *sorted(FAMILIES)]
PIECES = ["Who are you?", "你是谁", " ", "\n", "</think>", "<think>", "<|im_end|>", "<", "text", "user", "'", '"', "\\",
          "/nothink", "<tool_response>", "|>", "", "{{", "a" * 40]  # fmt: skip


@cache
def framing_of(name: str) -> ChatFraming:
    tokenizer = tokenizer_of(name) if name in MODERN else family_tokenizer(name)
    return ChatFraming(tokenizer, Tokens())


def drafted(draft: object, conversation: Conversation) -> object:
    try:
        return draft(conversation)  # type: ignore[operator]
    except DataError as error:
        return str(error)


contents = st.one_of(st.text(max_size=12), st.lists(st.sampled_from(PIECES), max_size=4).map("".join))


def conversation(system: str | None, texts: list[tuple[str, str, float]], row: int) -> Conversation:
    turns = [] if system is None else [Turn("system", system)]
    for question, answer, weight in texts:
        turns += [Turn("user", question), Turn("assistant", answer, weight)]
    return Conversation(tuple(turns), origin=Origin("rows.json", row))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.none(), contents),
            st.lists(st.tuples(contents, contents, st.sampled_from([1.0, 0.5, 0.0])), min_size=1, max_size=2),
        ),
        min_size=8,
        max_size=24,
    )
)
def test_a_filled_form_is_what_the_template_writes(
    name: str, rows: list[tuple[str | None, list[tuple[str, str, float]]]]
) -> None:
    framing = framing_of(name)
    draft = framing.drafting()
    for row, (system, texts) in enumerate(rows):
        each = conversation(system, texts, row)
        assert drafted(draft, each) == drafted(framing.draft, each)


@pytest.mark.parametrize("name", NAMES)
def test_plain_rows_are_filled_in(name: str) -> None:
    framing = framing_of(name)
    rendered = []
    made = FormDrafts(lambda each: rendered.append(each) or framing.draft(each), framing._template, framing._controls)
    rows = [conversation(None, [(f"Question {k}?", f"Answer {k}.", 1.0)], k) for k in range(40)]
    if isinstance(drafted(framing.draft, rows[0]), str):
        pytest.skip("the template wants reasoning in every answer")
    assert [made.draft(each) for each in rows] == [framing.draft(each) for each in rows]
    if "strftime_now" in framing._template.source:
        assert len(rendered) == 40
    else:
        assert len(rendered) == 2 + forms._FIRST  # the first row, the form, and the rows that prove it


def test_every_64th_row_is_rendered_too_and_may_differ() -> None:
    framing = framing_of("qwen3")
    rows = [conversation(None, [(f"Question {k}?", f"Answer {k}.", 1.0)], k) for k in range(64)]
    calls = 0

    def draft(each: Conversation) -> object:
        nonlocal calls
        calls += 1
        return framing.draft(each) if calls <= 2 + forms._FIRST else []

    made = FormDrafts(draft, framing._template, framing._controls)  # type: ignore[arg-type]
    for each in rows[:63]:
        made.draft(each)
    with pytest.raises(FormDiffers):
        made.draft(rows[63])
