"""Rows of all sources, in order, as conversations or as problems: what preparing, checking and previewing share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from weitune.data.conversation import Conversation
from weitune.data.formats import Options, RowReader
from weitune.data.problems import FaultyRow, Problem, Problems
from weitune.data.rows import RawRow
from weitune.data.sources import Source, find_sources, raw_rows


@dataclass(slots=True)
class SourceReport:
    """What reading one source told."""

    name: str
    kind: str
    encoding: str = ""
    compression: str | None = None
    format: str | None = None
    rows: int = 0
    unused: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    """What was done to rows that the user should know, with the number of rows."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        remarks = {"remarks": dict(self.remarks)} if self.remarks else {}
        return {"name": self.name, "kind": self.kind, "encoding": self.encoding, "compression": self.compression,
                "format": self.format, "rows": self.rows, "unused_fields": dict(self.unused), **remarks}  # fmt: skip


class Reader:
    """Reads sources one after the other; :attr:`problems` and :attr:`reports` grow as it goes."""

    def __init__(self, names: Iterable[str], options: Options) -> None:
        """Find and examine the sources that ``names`` stand for (reads every file once)."""
        self.problems = Problems()
        self.sources: Sequence[Source] = find_sources(names, self.problems)
        self.reports = [SourceReport(s.name, s.kind, s.facts.encoding if s.facts else "",
                                     s.facts.compression if s.facts else None) for s in self.sources]  # fmt: skip
        self._options = options

    @property
    def rows(self) -> int:
        """Rows read so far, faulty ones too."""
        return sum(report.rows for report in self.reports)

    def conversations(self) -> Iterator[tuple[int, Conversation]]:
        """Yield every row that is in order, with the number of its source; the others go to :attr:`problems`."""
        for number, item in self.items():
            if isinstance(item, Conversation):
                yield number, item

    def items(self) -> Iterator[tuple[int, Conversation | tuple[Problem, ...]]]:
        """Yield every row, with the number of its source, as a conversation or as its problems."""
        for number, (source, report) in enumerate(zip(self.sources, self.reports, strict=True)):
            reader = RowReader(self._options, unused=report.unused, remarks=report.remarks)
            for raw in raw_rows(source):
                item = _read(reader, raw)
                is_row = isinstance(raw, RawRow) or raw.row is not None
                report.rows += is_row
                report.format = reader.format
                if not isinstance(item, Conversation):
                    self.problems.add(item, rows=int(is_row))
                yield number, item


def _read(reader: RowReader, raw: RawRow | Problem) -> Conversation | tuple[Problem, ...]:
    if isinstance(raw, Problem):
        return (raw,)
    try:
        conversation = reader.read(raw.value, raw.origin)
    except FaultyRow as faulty:
        return (*raw.problems, *faulty.problems)
    return raw.problems or conversation


def read_conversations(
    files: Iterable[str], options: Options | None = None, system: str | None = None
) -> Iterator[Conversation]:
    """Yield the conversations in ``files`` (or folders, or hub ids), opened by ``system`` if they have none.

    Raises DataError, after the last row, with every problem there was.
    """
    reader = Reader(files, options or Options())
    for _, conversation in reader.conversations():
        yield conversation.with_system(system)
    if reader.problems:
        raise reader.problems.error()
