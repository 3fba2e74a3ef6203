"""Read single rows in tests, and build common ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from weitune.data.conversation import Conversation, Origin, Turn
from weitune.data.formats.parse import Options, RowReader
from weitune.data.problems import FaultyRow, Problem

HERE = Origin("rows.json", 4)
ASKED, ANSWERED = Turn("user", "q"), Turn("assistant", "a")


def read(row: Any, **options: Any) -> Conversation:
    return RowReader(Options(**options)).read(row, HERE)


def turns(*said: Any) -> tuple[Turn, ...]:
    """Return the turns of a row of messages."""
    return read(messages(*said)).turns


def unread(*rows: Any, **options: Any) -> Counter[str]:
    """Return the fields that nothing read in ``rows``."""
    reader = RowReader(Options(**options))
    for row in rows:
        reader.read(row, HERE)
    return reader.notes.unused


def faults(row: Any, **options: Any) -> list[Problem]:
    with pytest.raises(FaultyRow) as error:
        read(row, **options)
    return list(error.value.problems)


def fault(row: Any, **options: Any) -> Problem:
    """Return the only fault of a row."""
    (problem,) = faults(row, **options)
    assert problem.fix
    assert problem.place.startswith("rows.json row 4")
    return problem


def user(content: Any = "q", **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def assistant(content: Any = "a", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def tool(content: Any = "noon", **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **fields}


def messages(*said: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": list(said), **fields}


def speeches(**said: Any) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in said.items()]}
