"""Read the files of a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from weitune.data.formats.parse import Options
from weitune.data.problems import Problem
from weitune.data.read.conversations import Reader, read_conversations
from weitune.errors import DataError

ROWS = [{"instruction": "q1", "output": "a1"}, {"instruction": "q2", "output": "a2"}]


def reader_of(*paths: Path | str) -> Reader:
    return Reader([str(path) for path in paths], Options())


def questions(*paths: Path | str) -> list[str]:
    return [conversation.turns[0].content for conversation in read_conversations(reader_of(*paths))]


def problems(*paths: Path | str) -> list[Problem]:
    with pytest.raises(DataError) as error:
        questions(*paths)
    return [problem for problem in error.value.problems if isinstance(problem, Problem)]


def table(folder: Path, text: str, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
