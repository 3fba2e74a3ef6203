"""Delimited tables as a stream of rows: CSV and TSV. A row is an object of column name to cell, which is a text.

What spreadsheets leave behind is known: rows of empty cells are set aside, empty columns at the end have no name and
need none, and the numbers that pandas writes before every row stand in a first column without a name.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import IO

from weitune.data.conversation import Origin
from weitune.data.problems import Problem, data_problem, shown, shown_name
from weitune.data.read.rows import BlankRow, Notes, RawRow
from weitune.messages import say

_LONGEST_CELL = 1 << 30
_MARK = "\ufeff"
_ASKED = (
    {"instruction", "output"}, {"prompt", "completion"}, {"prompt", "response"}, {"query", "response"},
    {"question", "answer"},
)  # fmt: skip
"""Columns for a question and its answer, as the formats name them."""
_NAMES = frozenset({"system", "input", "history", "tools"}.union(*_ASKED))
_SEPARATOR = re.compile("sep=.?", re.IGNORECASE)
"""The line that Excel writes above the names of the columns to say what separates them."""
_SEPARATORS = {",": ("\t", ";", "|"), "\t": (",", ";", "|")}
"""What else may separate columns."""


def csv_rows(
    stream: IO[str], file: str, delimiter: str, notes: Notes | None = None
) -> Iterator[RawRow | BlankRow | Problem]:
    """Yield the rows of a delimited table whose first line names the columns; cells may span lines in quotes."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))  # a story fits a cell
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
        table = _Table(header, notes or Notes())
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
        yield data_problem(
            "data.table_rows.not_valid_table", file=file, row=row + 1, line=reader.line_num, error=str(error)
        )


class _Lines:
    """The lines of a file, without byte order marks before rows: files that were joined have one each."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.row_begins = True
        """Whether the next line begins a row, and does not go on within a cell."""

    def __iter__(self) -> Iterator[str]:
        for line in self._stream:
            begins, self.row_begins = self.row_begins, False
            yield line.lstrip(_MARK) if begins else line


class _Table:
    """The columns of a table, and how a row of cells becomes an object."""

    def __init__(self, header: list[str], notes: Notes) -> None:
        named = [at for at, name in enumerate(header) if name.strip()]
        self._columns = len(header)
        self._header = header[: named[-1] + 1]
        self._named = [(header[at], at) for at in named]
        self._unnamed = [at for at in range(len(self._header)) if at not in named]
        self._notes = notes
        self._names = _NAMES.union(self._header)

    def row(self, cells: list[str]) -> dict[str, str] | Problem:
        """Return the row in ``cells``, or what is wrong with it."""
        header = self._header
        if len(cells) > len(header):  # nothing, or the empty columns of a spreadsheet
            beyond = next((at for at in range(len(header), len(cells)) if cells[at].strip()), None)
            if beyond is not None and beyond < self._columns:
                return _without_name(beyond, cells[beyond])
            cells = cells[: len(header)] if beyond is None else cells
        if (problem := self._problem(cells)) is not None:
            return problem
        if not self._unnamed:
            return dict(zip(header, cells, strict=True))
        if self._unnamed[0] == 0 and cells[0].strip():
            self._notes.unused["row number"] += 1
        return {name: cells[at] for name, at in self._named}

    def _is_header(self, cells: list[str]) -> bool:
        """Tell whether a row names columns: those of this table in any order, or all fields of a format."""
        named = set(filter(str.strip, cells))
        return sorted(cells) == sorted(self._header) or (named <= _NAMES and any(map(named.issuperset, _ASKED)))

    def _problem(self, cells: list[str]) -> Problem | None:
        """Return what is wrong with a row of as many cells as it has."""
        header = self._header
        if len(cells) != len(header):
            return data_problem("data.table_rows.wrong_number_cells", header_count=len(header), cells_count=len(cells))
        if cells[0] in self._names and self._is_header(cells):
            return data_problem(
                "data.table_rows.header_again", cells=", ".join(map(shown_name, filter(str.strip, cells)))
            )
        if any("\0" in cell for cell in cells):
            return data_problem("data.table_rows.not_text")
        for at in self._unnamed:
            if cells[at].strip() and not (at == 0 and _is_number(cells[0])):
                return _without_name(at, cells[at])
        return None


def _without_name(at: int, cell: str) -> Problem:
    """Return the fault of a cell in a column that has no name."""
    return data_problem("data.table_rows.cell_without_column", at=at + 1, cell=shown(cell))


def _is_number(cell: str) -> bool:
    """Tell whether ``cell`` is a row's number, as pandas writes its index."""
    return cell.isascii() and cell.isdigit()


def _header_problems(header: list[str], file: str, delimiter: str) -> Iterator[Problem]:
    names = [name for name in header if name.strip()]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        found = say("data.table_rows.twice", twice=shown_name(twice[0]))
        yield data_problem("data.table_rows.repeated_column", file=file, line=1, found=found)
    if not names:
        fix = say("data.table_rows.write_names_columns_into")
        yield data_problem("data.table_rows.no_column_names", file=file, line=1, fix=fix)
    if _SEPARATOR.fullmatch(header[0]):
        fix = say("data.table_rows.remove_first_line")
        found = say("data.table_rows.excel_writes_there_say", header=header[0])
        yield data_problem("data.table_rows.no_column_names_2", file=file, line=1, found=found, fix=fix)
    elif len(header) == 1 and (other := next((each for each in _SEPARATORS[delimiter] if each in header[0]), None)):
        fix = say("data.table_rows.name_file_commas_csv")
        if other not in _SEPARATORS:
            fix = say("data.table_rows.save_file_commas_csv")
        found = say("data.table_rows.column", header=header[0][:60])
        yield data_problem(
            "data.table_rows.wrong_delimiter", file=file, line=1, delimiter=delimiter, found=found, fix=fix
        )
