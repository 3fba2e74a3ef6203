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

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {"name": self.name, "kind": self.kind, "encoding": self.encoding, "compression": self.compression,
                "format": self.format, "rows": self.rows, "unused_fields": dict(self.unused)}  # fmt: skip


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
        for number, (source, report) in enumerate(zip(self.sources, self.reports, strict=True)):
            reader = RowReader(self._options, unused=report.unused)
            for item in raw_rows(source):
                conversation = self._read(reader, item, report)
                report.format = reader.format
                if conversation is not None:
                    yield number, conversation

    def _read(self, reader: RowReader, item: RawRow | Problem, report: SourceReport) -> Conversation | None:
        if isinstance(item, Problem):
            report.rows += item.row is not None
            self.problems.add([item], rows=int(item.row is not None))
            return None
        report.rows += 1
        try:
            conversation = reader.read(item.value, item.origin)
        except FaultyRow as faulty:
            self.problems.add([*item.problems, *faulty.problems])
            return None
        if item.problems:
            self.problems.add(item.problems)
            return None
        return conversation


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
