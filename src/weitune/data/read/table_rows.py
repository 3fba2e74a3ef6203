"""Rows from CSV and TSV tables. A row is an object of column names and cells, all of which are strings.

What spreadsheets and pandas add is allowed: rows with only empty cells are set aside, and neither empty columns at the
end nor a first column with row numbers need a name.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import IO

from weitune.data.conversation import Origin
from weitune.data.formats.dialogues import PAIRS
from weitune.data.formats.fields import Notes
from weitune.data.problems import Problem, data_problem, shown, shown_name
from weitune.data.read.source import BlankRow, Raw, RawRow
from weitune.messages import say

_MAX_CELL_CHARACTERS = 1 << 30
_BYTE_ORDER_MARK = "\ufeff"
_QUESTION_AND_ANSWER = tuple(map(frozenset, (("instruction", "output"), *PAIRS)))
_NAMES = frozenset({"system", "input", "history", "tools"}.union(*_QUESTION_AND_ANSWER))
_SEPARATOR = re.compile("sep=.?", re.IGNORECASE)
"""The line with the separator that Excel writes above the names of the columns."""
_SEPARATORS = {",": ("\t", ";", "|"), "\t": (",", ";", "|")}
"""Other separators that a file may have instead."""


def csv_rows(stream: IO[str], file: str, delimiter: str, notes: Notes) -> Iterator[Raw]:
    """Yield the rows of a delimited table; its first line has the column names, and quoted cells may span lines."""
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL_CHARACTERS))  # a cell may contain a book
    lines = _Lines(stream)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    row = 0
    try:
        header = next(filter(None, reader), None)
        if header is None:
            return
        yield from _header_problems(header, file, delimiter)
        if not any(map(str.strip, header)) or _SEPARATOR.fullmatch(header[0]):
            return
        table = _Table(header, notes)
        lines.row_begins = True
        for cells in reader:
            lines.row_begins = True
            if not cells:
                continue
            row += 1
            origin = Origin(file, row, reader.line_num)
            if not any(map(str.strip, cells)):
                yield BlankRow(origin)
            else:
                value = table.row(cells)
                yield value.at(origin) if isinstance(value, Problem) else RawRow(origin, value)
    except csv.Error as error:
        line = reader.line_num
        yield data_problem("data.table_rows.not_valid_table", file=file, row=row + 1, line=line, error=str(error))


class _Lines:
    """The lines of a file, without the byte order marks before rows: joined files have one each."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.row_begins = True
        """Whether the next line begins a row, rather than continuing a cell."""

    def __iter__(self) -> Iterator[str]:
        for line in self._stream:
            begins, self.row_begins = self.row_begins, False
            yield line.lstrip(_BYTE_ORDER_MARK) if begins else line


class _Table:
    def __init__(self, header: list[str], notes: Notes) -> None:
        named = [at for at, name in enumerate(header) if name.strip()]
        self._columns = len(header)
        self._header = header[: named[-1] + 1]
        self._named = [(header[at], at) for at in named]
        self._unnamed = [at for at in range(len(self._header)) if at not in named]
        self._notes = notes
        self._names = _NAMES.union(self._header)

    def row(self, cells: list[str]) -> dict[str, str] | Problem:
        header = self._header
        if len(cells) > len(header):  # perhaps the empty columns of a spreadsheet
            beyond = next((at for at in range(len(header), len(cells)) if cells[at].strip()), None)
            if beyond is not None and beyond < self._columns:
                return _unnamed_column(beyond, cells[beyond])
            cells = cells[: len(header)] if beyond is None else cells
        if (problem := self._problem(cells)) is not None:
            return problem
        if not self._unnamed:
            return dict(zip(header, cells, strict=True))
        if self._unnamed[0] == 0 and cells[0].strip():
            self._notes.unused[say("data.table_rows.row_number")] += 1
        return {name: cells[at] for name, at in self._named}

    def _is_header(self, cells: list[str]) -> bool:
        """Return whether a row consists of the names of this table's columns in any order, or of those of a format."""
        named = set(filter(str.strip, cells))
        names_a_format = named <= _NAMES and any(map(named.issuperset, _QUESTION_AND_ANSWER))
        return names_a_format or sorted(cells) == sorted(self._header)

    def _problem(self, cells: list[str]) -> Problem | None:
        header = self._header
        if len(cells) != len(header):
            return data_problem("data.table_rows.wrong_number_of_cells", columns=len(header), cells=len(cells))
        if cells[0] in self._names and self._is_header(cells):
            names = ", ".join(map(shown_name, filter(str.strip, cells)))
            return data_problem("data.table_rows.repeated_header", names=names)
        if any("\0" in cell for cell in cells):
            return data_problem("data.table_rows.nul_character")
        for at in self._unnamed:
            is_row_number = at == 0 and cells[0].isascii() and cells[0].isdigit()  # as pandas writes its index
            if cells[at].strip() and not is_row_number:
                return _unnamed_column(at, cells[at])
        return None


def _unnamed_column(at: int, cell: str) -> Problem:
    return data_problem("data.table_rows.cell_without_column", number=at + 1, cell=shown(cell))


def _header_problems(header: list[str], file: str, delimiter: str) -> Iterator[Problem]:
    names = [name for name in header if name.strip()]
    if repeated := [name for name in names if names.count(name) > 1]:
        yield data_problem("data.table_rows.repeated_column", file=file, line=1, name=shown_name(repeated[0]))
    if not names:
        yield data_problem("data.table_rows.no_column_names", file=file, line=1)
    if _SEPARATOR.fullmatch(header[0]):
        yield data_problem("data.table_rows.separator_line", file=file, line=1, line_text=header[0])
    elif len(header) == 1 and (other := next((each for each in _SEPARATORS[delimiter] if each in header[0]), None)):
        # a table with commas or tabs only needs the right suffix
        message = "data.table_rows.wrong_suffix" if other in _SEPARATORS else "data.table_rows.wrong_delimiter"
        yield data_problem(message, file=file, line=1, delimiter=delimiter, name=header[0][:60])
