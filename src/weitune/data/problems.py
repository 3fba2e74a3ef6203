"""Problems in the user's data, each with its place and its fix, collected by kind and counted.

Only the first problems of each kind are kept, so that a file with a million bad rows does not fill the memory.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from weitune.data.conversation import Origin
from weitune.errors import DataError
from weitune.messages import joined, say, texts

_KEPT = 1000
"""Problems of one kind that are kept at most; `--json` lists all of these."""
_SHOWN = 3
"""Problems of one kind that the terminal shows at most."""
_LONGEST_SHOWN = 60
"""Characters of a wrong value that a message quotes."""
_LONGEST_ERROR = 200
"""Characters of another library's error that a message quotes."""
_BLANK_LETTERS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Invisible characters that Unicode counts as printable: fillers and variation selectors."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault in the data: what is wrong, where, and the fix.

    Problems of one ``kind`` have the same cause. ``row``, ``line`` and ``column`` count from 1, columns in characters.
    """

    kind: str
    expected: str
    found: str
    fix: str
    file: str = ""
    row: int | None = None
    line: int | None = None
    column: int | None = None
    field: str = ""

    def at(self, origin: Origin) -> Problem:
        return replace(self, file=origin.file, row=origin.row, line=self.line or origin.line)

    @property
    def message(self) -> str:
        return say("data.problems.message", expected=self.expected, found=self.found)

    @property
    def place(self) -> str:
        """File, row, line, column and field, as far as they are known."""
        parts = [shown_name(self.file)] if self.file else []
        if self.row is not None:
            parts.append(say("data.problems.row", row=self.row))
        if self.column is not None:
            parts.append(say("data.problems.line_and_column", line=self.line, column=self.column))
        elif self.line is not None:
            parts.append(say("data.problems.line", line=self.line))
        place = joined(" ", parts)
        return say("data.problems.field", place=place, field=shown_name(self.field)) if self.field else place

    def __str__(self) -> str:
        if not self.place:
            return self.message
        return say("data.problems.at_place", place=self.place, message=self.message)


class FaultyRow(Exception):  # noqa: N818  (carries problems, and is always caught)
    """A row that is no valid conversation, with all of its problems."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*map(str, problems))
        self.problems = problems


class Problems:
    """Problems by kind and fix. The length counts all of them; iteration yields those that were kept."""

    def __init__(self) -> None:
        self.rows = 0
        """Rows that have a problem."""
        self._groups: dict[tuple[str, str], list[Problem]] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, problems: Iterable[Problem], rows: int = 1) -> None:
        """Add the problems of one faulty row, or of a file (``rows`` 0)."""
        self.rows += rows
        for problem in problems:
            key = (problem.kind, problem.fix)
            group = self._groups.setdefault(key, [])
            if len(group) < _KEPT:
                group.append(problem)
            self._counts[key] = self._counts.get(key, 0) + 1

    def __len__(self) -> int:
        return sum(self._counts.values())

    def __iter__(self) -> Iterator[Problem]:
        for group in self._groups.values():
            yield from group

    def lines(self) -> list[str]:
        """Return lines for the terminal: each kind with its count, the first few problems, and the fix."""
        lines = []
        for (kind, fix), group in self._groups.items():
            count = self._counts[kind, fix]
            lines.append(say("data.problems.several", kind=kind, count=count) if count > 1 else kind)
            lines += [f"  {problem}" for problem in group[:_SHOWN]]
            if count > _SHOWN:
                lines.append("  " + say("data.problems.more", count=count - _SHOWN))
            lines.append("  " + say("data.problems.fix", fix=fix))
        return lines

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "kind": kind,
                "cure": fix,
                "count": self._counts[kind, fix],
                "problems": [{k: v for k, v in asdict(p).items() if k not in ("kind", "fix")} for p in group],
            }
            for (kind, fix), group in self._groups.items()
        ]

    def error(self) -> DataError:
        title = say("data.problems.title", count=len(self))
        lines = joined("\n  ", [say("data.problems.heading", title=title), *self.lines()])
        return DataError("data.problems.many", lines=lines, problems=tuple(self))


def data_problem(
    message: str, /, *, file: str = "", row: int | None = None, line: int | None = None, field: str = "", **values: Any
) -> Problem:
    """Return the problem with the texts of ``message``, an id of the catalogue, formatted with ``values``."""
    return Problem(**texts(message, **values), file=file, row=row, line=line, column=None, field=field)


def framing_error(origin: Origin | None, problem: Problem) -> DataError:
    """Return the error that the framing cannot represent a valid row, because of ``problem``."""
    problem = problem.at(origin) if origin is not None else problem
    return DataError("data.problems.one", problem=problem, fix=problem.fix, problems=(problem,))


def shown_name(name: str) -> str:
    r"""Return the name of a file, column or field for a message, with escapes in place of invisible characters.

    A zero-width space becomes ``\u200b``, a space at either end ``\x20``, and half of a surrogate pair ``\udcb2``; the
    accents of a decomposed letter are escaped too. So different names never look the same, and every name can be
    printed in UTF-8. An empty name is shown as ``""``.
    """
    if not name:
        return '""'
    bare = name.strip(" ")
    start = name.find(bare) if bare else len(name)
    composed = name.isascii() or unicodedata.is_normalized("NFC", name)
    return "".join(
        char if start <= at < start + len(bare) and _is_visible(char, composed) else _escape(char)
        for at, char in enumerate(name)
    )


def _is_visible(char: str, composed: bool) -> bool:
    return char.isprintable() and not _BLANK_LETTERS.match(char) and (composed or not unicodedata.combining(char))


def _escape(char: str) -> str:
    return "\\x20" if char == " " else char.encode("unicode_escape").decode()


_TYPES = {
    str: "data.problems.string",
    bool: "data.problems.boolean",
    int: "data.problems.number",
    float: "data.problems.number",
    list: "data.problems.list",
    dict: "data.problems.object",
}


def shown(value: object) -> str:
    """Return a wrong value for a message: its type and its beginning."""
    if value is None:
        return "null"
    text = " ".join(repr(value).split())
    text = text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
    name = _TYPES.get(type(value))
    return say(name, value=text) if name is not None else f"{type(value).__name__} {text}"


def shown_error(error: Exception) -> str:
    """Return the beginning of another library's error for a message, on one line."""
    return " ".join(str(error).split())[:_LONGEST_ERROR] or type(error).__name__


def shown_field(name: str, value: object) -> str:
    """Return a field with its wrong value for a message."""
    return say("data.problems.field_with_value", name=shown_name(name), value=shown(value))
