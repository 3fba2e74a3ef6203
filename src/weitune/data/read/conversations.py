"""The rows of all sources, in order, as conversations or problems. Preparing, checking and previewing start here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weitune.data.conversation import Conversation
from weitune.data.formats.containers import RowCriteria
from weitune.data.formats.fields import Notes
from weitune.data.formats.parse import Options, RowReader
from weitune.data.formats.strict_json import MAX_DEPTH, too_deep
from weitune.data.problems import FaultyRow, Problem, Problems, data_problem
from weitune.data.read.source import BlankRow, GivenEncodings, RawRow, Source
from weitune.data.read.source_rows import raw_rows
from weitune.data.read.sources import find_sources

_LISTED = 20
"""Blank rows whose places are kept."""

Item = Conversation | BlankRow | tuple[Problem, ...]
"""A row: a conversation, blank, or its problems."""


@dataclass(slots=True)
class SourceReport:
    """A source and its rows, counted."""

    name: str
    kind: str
    encoding: str = ""
    compression: str | None = None
    format: str | None = None
    rows: int = 0
    notes: Notes = field(default_factory=Notes)

    def to_json(self) -> dict[str, Any]:
        facts = {key: getattr(self, key) for key in ("name", "kind", "encoding", "compression", "format", "rows")}
        optional = {"null_fields_removed": self.notes.null_fields, "remarks": dict(self.notes.remarks)}
        given = {key: value for key, value in optional.items() if value}
        return {**facts, "unused_fields": dict(self.notes.unused), **given}


class Reader:
    """Reads sources one after the other; :attr:`problems` and :attr:`reports` grow as it goes.

    Creating it finds and examines the sources that ``names`` stand for, which reads every file once.
    """

    def __init__(self, names: Iterable[str], options: Options) -> None:
        self.problems = Problems()
        encodings = GivenEncodings(options.encoding)
        self.sources: Sequence[Source] = find_sources(names, self.problems, encodings)
        self.unused_encodings = encodings.unused(self.sources)
        """File names in ``options.encoding`` that stand for no source."""
        self.reports = [_report_of(source) for source in self.sources]
        self.blank_rows = 0
        """Rows with only empty cells, which are skipped."""
        self.blank_places: list[str] = []
        """The places of the first of them."""
        self._options = options

    @property
    def rows(self) -> int:
        """Rows read so far, faulty and blank ones too."""
        return sum(report.rows for report in self.reports)

    def conversations(self) -> Iterator[tuple[int, Conversation]]:
        """Yield every valid row, with the number of its source; the others go to :attr:`problems`."""
        for number, item in self.items():
            if isinstance(item, Conversation):
                yield number, item

    def items(self) -> Iterator[tuple[int, Item]]:
        """Yield every row, with the number of its source: a conversation, a blank row, or the row's problems."""
        criteria = RowCriteria(frozenset((self._options.columns or {}).values()))
        for number, (source, report) in enumerate(zip(self.sources, self.reports, strict=True)):
            reader = RowReader(self._options, notes=report.notes)
            for raw in raw_rows(source, criteria, report.notes):
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


def _report_of(source: Source) -> SourceReport:
    facts = source.facts
    if facts is None:
        return SourceReport(source.name, source.kind)
    return SourceReport(source.name, source.kind, facts.encoding, facts.compression)


def _read(reader: RowReader, raw: RawRow | BlankRow | Problem) -> Item:
    if isinstance(raw, BlankRow):
        return raw
    if isinstance(raw, Problem):
        return (raw,)
    try:
        conversation = reader.read(raw.value, raw.origin)
        problems = _unrenderable(conversation)
    except FaultyRow as faulty:
        problems = faulty.problems
    except RecursionError:
        problems = (_too_deep(),)
    except OverflowError:
        problems = (data_problem("data.conversations.number_too_large"),)
    problems = (*raw.problems, *(problem.at(raw.origin) for problem in problems))
    return problems or conversation


def _too_deep() -> Problem:
    return data_problem("data.conversations.nested_too_deeply", levels=MAX_DEPTH)


def _unrenderable(conversation: Conversation) -> tuple[Problem, ...]:
    """Return the problems of calls and tools, which may be any JSON, that a chat template could not render."""
    values: list[Any] = [call.arguments for turn in conversation.turns for call in turn.tool_calls]
    values += conversation.tools
    if not values:
        return ()
    if too_deep(values, MAX_DEPTH + 1):
        return (_too_deep(),)
    if any(not math.isfinite(number) for number in _floats(values)):
        return (data_problem("data.conversations.not_a_number"),)
    return ()


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
