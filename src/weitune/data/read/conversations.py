"""Rows of all sources, in order, as conversations or as problems: what preparing, checking and previewing share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weitune.data.conversation import Conversation
from weitune.data.formats.containers import Shape
from weitune.data.formats.parse import Options, RowReader
from weitune.data.problems import FaultyRow, Problem, Problems, data_problem
from weitune.data.read.depth import DEEPEST, too_deep
from weitune.data.read.rows import BlankRow, Notes, RawRow
from weitune.data.read.sources import Source, codecs_said, find_sources, raw_rows

_LISTED = 20
"""Blank rows that are listed."""

Item = Conversation | BlankRow | tuple[Problem, ...]
"""What a row is: a conversation, nothing, or its problems."""


@dataclass(slots=True)
class SourceReport:
    """What reading one source told."""

    name: str
    kind: str
    encoding: str = ""
    compression: str | None = None
    format: str | None = None
    rows: int = 0
    notes: Notes = field(default_factory=Notes)
    remarks: Counter[str] = field(default_factory=Counter)
    """What was done to rows that the user should know, with the number of rows."""

    @property
    def unused(self) -> Counter[str]:
        """Fields that nothing reads, with the number of rows that have them."""
        return self.notes.unused

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        nulls = {"null_fields_removed": self.notes.null_fields} if self.notes.null_fields else {}
        remarks = {"remarks": dict(self.remarks)} if self.remarks else {}
        return {"name": self.name, "kind": self.kind, "encoding": self.encoding, "compression": self.compression,
                "format": self.format, "rows": self.rows, "unused_fields": dict(self.unused), **nulls,
                **remarks}  # fmt: skip


class Reader:
    """Reads sources one after the other; :attr:`problems` and :attr:`reports` grow as it goes."""

    def __init__(self, names: Iterable[str], options: Options) -> None:
        """Find and examine the sources that ``names`` stand for (reads every file once)."""
        self.problems = Problems()
        codec_of, of_none = codecs_said(options.encoding)
        self.sources: Sequence[Source] = find_sources(names, self.problems, codec_of)
        self.encodings_of_none = of_none(self.sources)
        """File names that ``options.encoding`` has and that are those of no source."""
        self.reports = [SourceReport(s.name, s.kind, s.facts.encoding if s.facts else "",
                                     s.facts.compression if s.facts else None) for s in self.sources]  # fmt: skip
        self.blank_rows = 0
        """Rows with only empty cells, which are set aside."""
        self.blank_places: list[str] = []
        """Where the first of them stand."""
        self._options = options

    @property
    def rows(self) -> int:
        """Rows read so far, faulty and blank ones too."""
        return sum(report.rows for report in self.reports)

    def conversations(self) -> Iterator[tuple[int, Conversation]]:
        """Yield every row that is in order, with the number of its source; the others go to :attr:`problems`."""
        for number, item in self.items():
            if isinstance(item, Conversation):
                yield number, item

    def items(self) -> Iterator[tuple[int, Item]]:
        """Yield every row, with the number of its source, as a conversation, as blank, or as its problems."""
        shape = Shape(frozenset((self._options.columns or {}).values()))
        for number, (source, report) in enumerate(zip(self.sources, self.reports, strict=True)):
            reader = RowReader(self._options, unused=report.unused, remarks=report.remarks)
            for raw in raw_rows(source, shape, report.notes):
                item = _read(reader, raw)
                is_row = not isinstance(raw, Problem) or raw.row is not None
                report.rows += is_row
                report.format = reader.format
                if isinstance(item, BlankRow):
                    self._set_aside(item)
                elif not isinstance(item, Conversation):
                    self.problems.add(item, rows=int(is_row))
                yield number, item

    def _set_aside(self, row: BlankRow) -> None:
        self.blank_rows += 1
        if len(self.blank_places) < _LISTED:
            self.blank_places.append(str(row.origin))


def _read(reader: RowReader, raw: RawRow | BlankRow | Problem) -> Item:
    if isinstance(raw, BlankRow):
        return raw
    if isinstance(raw, Problem):
        return (raw,)
    try:
        conversation = reader.read(raw.value, raw.origin)
        problems = _unusable(conversation)
    except FaultyRow as faulty:
        problems = faulty.problems
    except RecursionError:
        problems = (_TOO_DEEP,)
    except OverflowError:
        problems = (_TOO_LARGE,)
    problems = (*raw.problems, *(problem.at(raw.origin) for problem in problems))
    return problems or conversation


_TOO_DEEP = data_problem("data.conversations.nested_too_deeply", deepest=DEEPEST)
_TOO_LARGE = data_problem("data.conversations.number_too_large")
_NO_NUMBER = data_problem("data.conversations.not_number")


def _unusable(conversation: Conversation) -> tuple[Problem, ...]:
    """Return what stands against rendering the calls and tools of ``conversation``, which may hold any JSON."""
    values: list[Any] = [call.arguments for turn in conversation.turns for call in turn.tool_calls]
    values += conversation.tools
    if not values:
        return ()
    if too_deep(values, DEEPEST + 1):
        return (_TOO_DEEP,)
    return (_NO_NUMBER,) if any(not math.isfinite(number) for number in _floats(values)) else ()


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _floats(inner)


def read_conversations(
    files: Iterable[str], options: Options | None = None, system: str | None = None
) -> Iterator[Conversation]:
    """Yield the conversations in ``files`` (or folders, or hub ids), opened by ``system`` if they have none.

    Raises DataError, after the last row, with every problem there was.
    """
    yield from conversations_of(Reader(files, options or Options()), system)


def conversations_of(reader: Reader, system: str | None = None) -> Iterator[Conversation]:
    """Yield the conversations that ``reader`` reads, opened by ``system`` if they have none.

    Raises DataError, after the last row, with every problem there was.
    """
    for _, conversation in reader.conversations():
        yield conversation.with_system(system)
    if reader.problems:
        raise reader.problems.error()
