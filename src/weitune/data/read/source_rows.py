"""Reads the rows of a source with the reader for its type. All readers stream, so no file need fit in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from weitune.data.formats.containers import RowCriteria
from weitune.data.formats.fields import Notes
from weitune.data.problems import Problem, data_problem, shown_error
from weitune.data.read.arrow_rows import arrow_rows, dataset_rows, parquet_rows
from weitune.data.read.json_rows import json_rows
from weitune.data.read.source import BlankRow, Raw, Source
from weitune.data.read.table_rows import csv_rows
from weitune.data.read.text_file import blocks, open_text, unreadable


def raw_rows(source: Source, criteria: RowCriteria | None = None, notes: Notes | None = None) -> Iterator[Raw]:
    """Yield the rows of ``source`` in order, with a Problem in place of rows that cannot be read.

    ``criteria`` distinguish rows from objects that contain rows.
    """
    row = 0
    empty: str | None = "data.source_rows.no_rows"
    try:
        for item in _read(source, criteria or RowCriteria(), notes or Notes()):
            row = item.row or row if isinstance(item, Problem) else item.origin.row
            empty = "data.source_rows.only_blank_rows" if empty and isinstance(item, BlankRow) else None
            yield item
    except OSError as error:
        empty = None
        yield unreadable(source.name, error, row + 1)
    except ImportError as error:  # images and sounds of a data set are decoded by packages of their own
        empty = None
        yield data_problem("data.text_file.unreadable", file=source.name, row=row + 1, reason=shown_error(error))
    except UnicodeError as error:
        empty = None
        yield data_problem(
            "data.source_rows.undecodable_text",
            file=source.name,
            row=row + 1,
            encoding=source.facts.encoding if source.facts else "utf-8",
            error=shown_error(error),
        )
    if empty is not None:
        yield data_problem(empty, file=source.name)


def _read(source: Source, criteria: RowCriteria, notes: Notes) -> Iterator[Raw]:
    if source.path is None:
        yield from dataset_rows(source.table, source.table.features.arrow_schema, source.name, notes, criteria.blank)
    elif not source.is_text:
        rows = parquet_rows if source.kind == "parquet" else arrow_rows
        with _decompressed(source) as file:
            yield from rows(file, source.name, notes, criteria.blank)
    else:
        encoding = source.facts.encoding if source.facts else "utf-8"
        if source.kind == "json":
            with open_text(source.path, encoding, newline=None) as stream:
                yield from json_rows(stream, source.name, source.part, criteria, notes)
        else:
            with open_text(source.path, encoding) as stream:
                yield from csv_rows(stream, source.name, "," if source.kind == "csv" else "\t", notes)


@contextmanager
def _decompressed(source: Source) -> Iterator[Path | IO[bytes]]:
    """Yield the file of ``source``; if it is compressed, a decompressed copy, since Parquet is read from the end."""
    assert source.path is not None  # noqa: S101  (for mypy)
    if source.facts is None or source.facts.compression is None:
        yield source.path
        return
    with tempfile.TemporaryFile() as file:
        for block in blocks(source.path):
            file.write(block)
        file.seek(0)
        yield file
