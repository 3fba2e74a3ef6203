"""What is wrong with somebody's data: each problem with its place and its fix, gathered, grouped and counted.

A file of a million bad rows must not fill the memory: each kind keeps its first problems and counts the rest.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from weitune.data.conversation import Origin
from weitune.errors import DataError
from weitune.messages import say, texts

_KEPT = 1000
"""Problems of one kind that are kept whole; `--json` lists them all."""
_SHOWN = 3
"""Problems of one kind that the terminal shows."""
_LONGEST_SHOWN = 60
"""Characters of a wrong value that a message repeats."""
_BLANK_LETTERS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Characters that Unicode counts as printable and that leave no mark: fillers and variation selectors."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault. ``kind`` groups those with one cause; ``row`` and ``line`` count from 1; ``column`` in characters."""

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
        """Return this problem, standing at ``origin``."""
        return replace(self, file=origin.file, row=origin.row, line=self.line or origin.line)

    @property
    def place(self) -> str:
        """File, row, line, column and field, as far as they are known."""
        spot = ", ".join(f"{name} {n}" for name, n in [("line", self.line), ("column", self.column)] if n is not None)
        file = shown_name(self.file) if self.file else ""
        parts = [file, f"row {self.row}" if self.row is not None else "", f"({spot})" if spot else ""]
        field = f", field `{shown_name(self.field)}`" if self.field else ""
        return " ".join(part for part in parts if part) + field

    def __str__(self) -> str:
        """Return one line: place, what was expected, what was found."""
        return f"{self.place}{': ' if self.place else ''}expected {self.expected}; found {self.found}"


class FaultyRow(Exception):  # noqa: N818  (carries problems, and is always caught)
    """A row that cannot become a conversation, with every problem in it."""

    def __init__(self, *problems: Problem) -> None:
        """Keep ``problems``."""
        super().__init__(*map(str, problems))
        self.problems = problems


class Problems:
    """Gathers problems, by kind and fix."""

    def __init__(self) -> None:
        """Begin with none."""
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
        """Return how many problems there are, kept or only counted."""
        return sum(self._counts.values())

    def __iter__(self) -> Iterator[Problem]:
        """Yield the problems that were kept."""
        for group in self._groups.values():
            yield from group

    def lines(self) -> list[str]:
        """Return the problems for the terminal: each kind with its count, the first few, and the fix."""
        lines = []
        for (kind, fix), group in self._groups.items():
            count = self._counts[kind, fix]
            lines.append(f"{kind}: {count:,}" if count > 1 else kind)
            lines += [f"  {problem}" for problem in group[:_SHOWN]]
            lines += [f"  … and {count - _SHOWN:,} more"] if count > _SHOWN else []
            lines += [f"  fix: {fix}"]
        return lines

    def to_json(self) -> list[dict[str, Any]]:
        """Return every kind with its count and the problems kept."""
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
        """Return the exception that says all this."""
        title = say("data.problems.title", count=len(self))
        lines = "\n  ".join([f"{title}:", *self.lines()])
        return DataError("data.problems.many", lines=lines, problems=tuple(self))


def data_problem(
    message_id: str,
    /,
    *,
    file: str = "",
    row: int | None = None,
    line: int | None = None,
    column: int | None = None,
    field: str = "",
    **values: object,
) -> Problem:
    """Return the problem whose texts are ``message_id``'s in the catalogue, at a place as far as it is known."""
    return Problem(**texts(message_id, **values), file=file, row=row, line=line, column=column, field=field)


def framing_error(origin: Origin | None, problem: Problem) -> DataError:
    """Return an error about a row that is in order but that a framing cannot take, for the reason ``problem``."""
    problem = problem.at(origin) if origin is not None else problem
    return DataError("data.problems.one", problem=problem, fix=problem.fix, problems=(problem,))


def shown_name(name: str) -> str:
    r"""Return the name of a file, column or field for a message, with what cannot be seen written as an escape.

    A zero-width space becomes ``\u200b``, a blank at either end ``\x20``, half of a surrogate pair ``\udcb2``, and so
    do the accents of a decomposed letter. Names that differ never look the same for such a reason, and the result can
    be printed and written in UTF-8. A name without any characters is shown as ``""``.
    """
    if not name:
        return '""'
    bare = name.strip(" ")
    start = name.find(bare) if bare else len(name)
    composed = name.isascii() or unicodedata.is_normalized("NFC", name)
    return "".join(
        char if start <= at < start + len(bare) and _leaves_a_mark(char, composed) else _escape(char)
        for at, char in enumerate(name)
    )


def _leaves_a_mark(char: str, composed: bool) -> bool:
    return char.isprintable() and not _BLANK_LETTERS.match(char) and (composed or not unicodedata.combining(char))


def _escape(char: str) -> str:
    return "\\x20" if char == " " else char.encode("unicode_escape").decode()


def shown(value: object) -> str:
    """Return a wrong value for a message: its kind, and the beginning of it."""
    if value is None:
        return "null"
    names = {
        str: "the text",
        bool: "the truth value",
        int: "the number",
        float: "the number",
        list: "a list",
        dict: "an object",
    }
    text = " ".join(repr(value).split())
    text = text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
    return f"{names.get(type(value), type(value).__name__)} {text}"
