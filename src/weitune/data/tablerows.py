"""Tables as a stream of rows: CSV, TSV and Parquet. A row is an object of column name to value.

In a table an empty cell of Parquet (null) means that the row has no such field; a cell of CSV is always text.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from weitune.data.conversation import Origin
from weitune.data.problems import Problem
from weitune.data.rows import RawRow

_LONGEST_CELL = 1 << 30
_BATCH = 1024


def csv_rows(stream: IO[str], file: str, delimiter: str) -> Iterator[RawRow | Problem]:
    """Yield the rows of a delimited table whose first line names the columns; cells may span lines in quotes."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))  # a story fits a cell
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    row = 0
    try:
        header = next(reader, None)
        if header is None:
            return
        yield from _header_problems(header, file, delimiter)
        for cells in reader:
            if not cells:
                continue
            row += 1
            origin = Origin(file, row, reader.line_num)
            if len(cells) == len(header):
                yield RawRow(origin, dict(zip(header, cells, strict=True)))
            else:
                yield Problem(
                    "wrong number of cells",
                    f"{len(header)} cells, one for each column",
                    f"{len(cells)}",
                    "Quote cells that hold the delimiter, and give every row all columns.",
                ).at(origin)
    except csv.Error as error:
        yield Problem(
            "not a valid table",
            "cells in quotes or without any",
            str(error),
            "Close every quote, and double a quote within a quoted cell. The rows after it could not be read.",
            file,
            row + 1,
            reader.line_num,
        )


def _header_problems(header: list[str], file: str, delimiter: str) -> Iterator[Problem]:
    names = [name for name in header if header.count(name) > 1]
    if names:
        yield Problem(
            "repeated column", "different column names", f"{names[0]!r} twice", "Rename one of them.", file, line=1
        )
    other = {",": "\t", "\t": ","}[delimiter]
    if len(header) == 1 and other in header[0]:
        yield Problem(
            "wrong delimiter",
            f"columns separated by {delimiter!r}",
            f"one column {header[0][:60]!r}",
            "Name a file with commas .csv and one with tabs .tsv.",
            file,
            line=1,
        )


def parquet_rows(source: Path | IO[bytes], file: str) -> Iterator[RawRow | Problem]:
    """Yield the rows of a Parquet file, a batch at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    row = 0
    try:
        with parquet.ParquetFile(source, memory_map=isinstance(source, Path)) as table:
            for batch in table.iter_batches(_BATCH):
                for value in batch.to_pylist():
                    row += 1
                    yield RawRow(Origin(file, row), present(value))
    except (pa.ArrowException, OSError) as error:
        yield Problem(
            "not a valid Parquet file",
            "a Parquet file",
            " ".join(str(error).split())[:120],
            "Write the file again; it is damaged or of another type.",
            file,
            row + 1,
        )


def present(row: dict[str, Any]) -> dict[str, Any]:
    """Return ``row`` without its empty cells."""
    return {key: value for key, value in row.items() if value is not None}
