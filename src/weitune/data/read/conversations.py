"""The rows of all sources, in order, as conversations, preferences or problems: the entry to reading data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from weitune.data.conversation import Conversation
from weitune.data.formats.containers import RowCriteria
from weitune.data.formats.fields import Notes
from weitune.data.formats.kinds import ANY_KIND, PREFERENCES, Kind
from weitune.data.formats.parse import Options, Row, RowReader
from weitune.data.preference.values import Judged, Pair
from weitune.data.problems import FaultyRow, Problem, Problems
from weitune.data.read.source import BlankRow, GivenEncodings, RawRow, Source
from weitune.data.read.source_rows import raw_rows
from weitune.data.read.sources import find_sources

_LISTED = 20
"""Blank rows that are listed at most."""
_ROWS = (Conversation, Pair, Judged)

Item = Row | BlankRow | tuple[Problem, ...]
"""What becomes of a row: what is in it, a blank row, or problems."""


@dataclass(slots=True)
class SourceReport:
    """A source and its rows, counted."""

    name: str
    kind: str
    encoding: str = ""
    compression: str | None = None
    format: str | None = None
    holds: Kind | None = None
    """The kind of the rows; None if none was recognised."""
    rows: int = 0
    notes: Notes = field(default_factory=Notes)

    def to_json(self) -> dict[str, Any]:
        facts = {key: getattr(self, key) for key in ("name", "kind", "encoding", "compression", "format", "rows")}
        optional = {
            "holds": self.holds if self.holds in PREFERENCES else None,
            "null_fields_removed": self.notes.null_fields,
            "remarks": dict(self.notes.remarks),
        }
        given = {key: value for key, value in optional.items() if value}
        return {**facts, "unused_fields": dict(self.notes.unused), **given}


class Reader:
    """Reads the sources that ``names`` stand for in order, and collects their :attr:`problems` and :attr:`reports`.

    The constructor finds and examines the sources, which reads every file once.
    """

    def __init__(self, names: Iterable[str], options: Options | None = None) -> None:
        options = options or Options()
        self.problems = Problems()
        encodings = GivenEncodings(options.encoding)
        self.sources: Sequence[Source] = find_sources(names, self.problems, encodings)
        self.unused_encodings = encodings.unused(self.sources)
        """Names in ``options.encoding`` that belong to no source."""
        self._options = options
        self._of_files = deepcopy(self.problems)
        self.restart()

    def restart(self) -> None:
        """Forget the rows that have been read, and begin with the first one again."""
        self.problems = deepcopy(self._of_files)
        self.reports = [_report_of(source) for source in self.sources]
        self.blank_rows = 0
        """Rows with only empty cells, which are skipped."""
        self.blank_places: list[str] = []
        """Places of the first of these rows."""

    @property
    def rows(self) -> int:
        """Rows read so far, including faulty and blank ones."""
        return sum(report.rows for report in self.reports)

    def first_kind(self) -> Kind | None:
        """Return the kind of the first recognised row, or None; then begin with the first row again."""
        found = (report.holds for number, _ in self.items() if (report := self.reports[number]).holds)
        kind = next(found, None)
        self.restart()
        return kind

    def conversations(self) -> Iterator[tuple[int, Conversation]]:
        """Yield every valid conversation, with the number of its source."""
        for number, row in self.valid_rows():
            if isinstance(row, Conversation):
                yield number, row

    def preferences(self) -> Iterator[tuple[int, Pair | Judged]]:
        """Yield every valid pair and judged answer, with the number of its source."""
        for number, row in self.valid_rows():
            if not isinstance(row, Conversation):
                yield number, row

    def valid_rows(self) -> Iterator[tuple[int, Row]]:
        """Yield every valid row, with the number of its source."""
        for number, item in self.items():  # a blank row and problems are tuples
            if not isinstance(item, tuple):
                yield number, item

    def items(self) -> Iterator[tuple[int, Item]]:
        """Yield what becomes of every row, with the number of its source.

        If rows of every kind are read, the first source determines the kind of all of them.
        """
        options = self._options
        columns = options.columns or {}
        system = frozenset(column for part, column in columns.items() if part == "system")
        criteria = RowCriteria(frozenset(columns.values()), blank=system)
        for number, (source, report) in enumerate(zip(self.sources, self.reports, strict=True)):
            reader = RowReader(options, notes=report.notes)
            for raw in raw_rows(source, criteria, report.notes):
                item = _read(reader, raw)
                is_row = not isinstance(raw, Problem) or raw.row is not None
                report.rows += is_row
                report.format, report.holds = reader.format, reader.kind
                if isinstance(item, BlankRow):
                    self.blank_rows += 1
                    if len(self.blank_places) < _LISTED:
                        self.blank_places.append(str(item.origin))
                elif not isinstance(item, _ROWS):
                    self.problems.add(item, rows=int(is_row))
                yield number, item
            if reader.kind is not None and options.kinds == ANY_KIND:
                options = replace(options, kinds=frozenset({reader.kind}))


def _report_of(source: Source) -> SourceReport:
    facts = source.facts
    encoding, compression = (facts.encoding, facts.compression) if facts is not None else ("", None)
    return SourceReport(source.name, source.kind, encoding, compression)


def _read(reader: RowReader, raw: RawRow | BlankRow | Problem) -> Item:
    if isinstance(raw, BlankRow):
        return raw
    if isinstance(raw, Problem):
        return (raw,)
    try:
        row = reader.read(raw.value, raw.origin)
    except FaultyRow as faulty:
        return (*raw.problems, *faulty.problems)
    return raw.problems or row


def read_conversations(reader: Reader, system: str | None = None) -> Iterator[Conversation]:
    """Yield the conversations that ``reader`` reads, and the prompts of preferences with the chosen or judged answer.

    Those without a system prompt begin with ``system``. Raises DataError, after the last row, with every problem.
    """
    for row in read_rows(reader, system):
        yield row if isinstance(row, Conversation) else row.dialogue


def read_rows(reader: Reader, system: str | None = None) -> Iterator[Row]:
    """Yield the rows that ``reader`` reads; prompts without a system prompt begin with ``system``.

    Raises DataError, after the last row, with every problem.
    """
    for _, row in reader.valid_rows():
        yield row.with_system(system, replace_blank=True)
    if reader.problems:
        raise reader.problems.error()
