"""Answers with a verdict, in every format, and what is refused of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.data.formats.preferences.reading_preferences import found, read_judged, unread
from tests.data.read.reading_rows import ANSWERED, ASKED, HERE, assistant, messages, speeches, tool, user
from weitune.data.conversation import Conversation, Turn
from weitune.data.formats.kinds import PREFERENCES
from weitune.data.formats.parse import Options, RowReader
from weitune.data.preference.values import Judged
from weitune.data.problems import FaultyRow


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": [user()], "completion": [assistant()]},
        {"question": "q", "answer": "a"},
        {"instruction": "q", "output": "a"},
        messages(user(), assistant()),
        speeches(human="q", gpt="a"),
        {"conversation": [{"input": "q", "output": "a"}]},
    ],
)
@pytest.mark.parametrize(
    ("name", "value", "liked"),
    [
        ("label", True, True),
        ("label", False, False),
        ("label", 1, True),
        ("label", 0.0, False),
        ("label", "False", False),
        ("kto_tag", " true", True),
        ("kto_tag", "0", False),
        ("is_desirable", 1, True),
    ],
)
def test_formats(row: dict[str, Any], name: str, value: Any, liked: bool) -> None:
    judged = {**row, name: value}
    assert read_judged(judged) == Judged(Conversation((ASKED,), (), HERE), (ANSWERED,), liked)
    assert not unread(judged)


def test_the_answer_follows_the_last_turn_of_the_user() -> None:
    said = [user("x"), assistant("y", weight=0), user(), assistant("call", tool_calls=[{"name": "f"}]), tool()]
    judged = read_judged(messages(*said, assistant(), label=True, system="s"))
    assert [turn.content for turn in judged.prompt.turns] == ["s", "x", "y", "q"]
    assert [turn.content for turn in judged.answer] == ["call", "noon", "a"]
    assert judged.dialogue.turns == judged.prompt.turns + judged.answer
    assert all(turn.weight == 1 for turn in judged.dialogue.turns)


def test_columns() -> None:
    columns = {"user": "问题", "assistant": "回答"}
    row = {"问题": "q", "回答": "a", "kto_tag": "1", "label": 3}
    assert read_judged(row, columns=columns).liked
    assert read_judged({**row, "kto_tag": "", "label": False}, columns=columns).liked is False
    columns["liked"] = "评价"
    assert read_judged({**row, "评价": 0}, columns=columns).liked is False
    for bad in (row, {**row, "评价": "好"}):
        with pytest.raises(FaultyRow, match="评价"):
            read_judged(bad, columns=columns)


@pytest.mark.parametrize(
    ("row", "kind", "field"),
    [
        ({"prompt": "q", "completion": "a", "kto_tag": "good"}, "wrong verdict", "kto_tag"),
        ({"prompt": "q", "completion": "a", "kto_tag": 2}, "wrong verdict", "kto_tag"),
        ({"prompt": "q", "label": True}, "missing field", "completion"),
        (messages(user(), label=True), "no answer", ""),
        (messages(assistant(), label=True), "no prompt", ""),
        (messages(user(), assistant(), user(), label=True), "no answer", ""),
        (messages(user(), assistant(weight=0), label=True), "weight in an answer", ""),
        ({"text": "q", "label": True}, "unknown format", ""),
        ({"prompt": "q", "completion": "a", "label": True, "image": "x.png"}, "not text", "image"),
        ({"prompt": "q", "completion": "a", "label": True, "better_answer": "b"}, "preference row", "better_answer"),
    ],
)
def test_faults(row: dict[str, Any], kind: str, field: str) -> None:
    assert (kind, field) in found(row)


@pytest.mark.parametrize("value", [None, "", "good", 2, [True]])
def test_a_verdict_that_is_none_in_a_file_of_verdicts(value: Any) -> None:
    reader = RowReader(Options(kinds=PREFERENCES))
    row = {"prompt": "q", "completion": "a"}
    read = reader.read({**row, "label": True}, HERE)
    assert read == Judged(Conversation((Turn("user", "q"),), (), HERE), (ANSWERED,), True)
    with pytest.raises(FaultyRow) as error:
        reader.read({**row, "label": value}, HERE)
    assert [(problem.kind, problem.field) for problem in error.value.problems] == [("wrong verdict", "label")]
