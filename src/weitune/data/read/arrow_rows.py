"""Rows from typed tables: Parquet, Arrow files as `datasets` saves them, and data sets of the hub.

In such a table all rows have the same columns, and all objects in a column the same fields; what a row lacks is null.
So a null field of an object, at any level, means that the object has no such field:

    written     {"name": "tides", "arguments": {"port": "Brest"}}
    in the file {"name": "tides", "arguments": {"port": "Brest", "year": null}}

Null elements of lists and null entries of maps are not added by the format, so they are kept. JSON in a string is not
changed either; in a column of the type ``arrow.json``, as which `datasets` saves values of mixed types, it is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from weitune.data.conversation import Origin
from weitune.data.formats.fields import Notes
from weitune.data.formats.strict_json import decode
from weitune.data.problems import data_problem, shown_error, shown_name
from weitune.data.read.source import BlankRow, Raw, RawRow

_BATCH_ROWS = 1024
_FILE_MAGIC = b"ARROW1"
_JSON = "arrow.json"

Clean = Callable[[Any], Any]


def parquet_rows(
    source: Path | IO[bytes], file: str, notes: Notes, blank: frozenset[str] = frozenset()
) -> Iterator[Raw]:
    """Yield the rows of a Parquet file; a null in a column of ``blank`` is a blank text."""
    from pyarrow import parquet

    def batches() -> Iterator[Any]:
        with parquet.ParquetFile(source, memory_map=isinstance(source, Path)) as table:
            yield from table.iter_batches(_BATCH_ROWS)

    yield from _rows(batches(), file, "data.arrow_rows.not_valid_parquet", notes, blank)


def arrow_rows(source: Path | IO[bytes], file: str, notes: Notes, blank: frozenset[str] = frozenset()) -> Iterator[Raw]:
    """Yield the rows of a file in either Arrow format: a stream, as `datasets` writes, or a file with an index.

    A null in a column of ``blank`` is a blank text.
    """
    import pyarrow as pa

    def batches() -> Iterator[Any]:
        stream = pa.memory_map(str(source)) if isinstance(source, Path) else pa.PythonFile(source, mode="r")
        with stream:
            if stream.read(len(_FILE_MAGIC)) == _FILE_MAGIC:
                reader = pa.ipc.open_file(stream)
                yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                stream.seek(0)
                yield from pa.ipc.open_stream(stream)

    yield from _rows(batches(), file, "data.arrow_rows.not_valid_arrow", notes, blank)


def _rows(batches: Iterator[Any], file: str, not_valid: str, notes: Notes, blank: frozenset[str]) -> Iterator[Raw]:
    import pyarrow as pa

    row = 0
    try:
        for batch in batches:
            names = batch.schema.names
            if len(set(names)) < len(names):
                repeated = next(name for name in names if names.count(name) > 1)
                yield data_problem("data.arrow_rows.repeated_column", file=file, name=shown_name(repeated))
                return
            batch.validate(full=True)  # Arrow trusts the data it maps, and would read beyond the end of a damaged file
            clean = cleaner(batch.schema, notes, stored=True)
            texts = dict.fromkeys(blank.intersection(names), "")
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                for value in batch.slice(start, _BATCH_ROWS).to_pylist():
                    row += 1
                    yield _row(Origin(file, row), {**texts, **clean(value)})
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        yield data_problem(not_valid, file=file, row=row + 1, error=shown_error(error))


def dataset_rows(
    table: Iterable[Any], schema: Any, name: str, notes: Notes, blank: frozenset[str] = frozenset()
) -> Iterator[RawRow | BlankRow]:
    """Yield the rows of a data set of the hub; its Arrow ``schema`` shows which of their nulls were added.

    A null in a column of ``blank`` is a blank text.
    """
    clean, texts = cleaner(schema, notes), dict.fromkeys(blank.intersection(schema.names), "")
    for row, value in enumerate(table, 1):
        yield _row(Origin(name, row), {**texts, **clean(value)})


def _row(origin: Origin, value: Any) -> RawRow | BlankRow:
    """Return a row; it is blank if all of its cells were null or blank, as in an empty line of a spreadsheet."""
    blank = all(isinstance(cell, str) and not cell.strip() for cell in value.values())
    return BlankRow(origin) if blank else RawRow(origin, value)


def cleaner(fields: Iterable[Any], notes: Notes, *, count: bool = False, stored: bool = False) -> Clean:
    """Return a function that removes the added nulls from an object with these Arrow ``fields``, such as a row.

    ``notes`` counts the nulls removed from objects inside it; nulls of the object itself are only counted with
    ``count``, since rows usually have some. Of ``stored`` values, those of the type ``arrow.json`` are decoded: Arrow
    gives their text.
    """
    below = {f.name: inner for f in fields if (inner := _type_cleaner(f.type, notes, stored)) is not None}

    def clean(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        present = {key: item for key, item in value.items() if item is not None}
        notes.null_fields += count * (len(value) - len(present))
        for key, inner in below.items():
            if key in present:
                present[key] = inner(present[key])
        return present

    return clean


def _type_cleaner(kind: Any, notes: Notes, stored: bool) -> Clean | None:
    """Return the function that removes added nulls from values of an Arrow type; None if the type has no fields."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_struct(kind):
        return cleaner((kind.field(i) for i in range(kind.num_fields)), notes, count=True, stored=stored)
    if types.is_map(kind):
        return _map_cleaner(_type_cleaner(kind.item_type, notes, stored))
    if types.is_dictionary(kind):
        return _type_cleaner(kind.value_type, notes, stored)
    if isinstance(kind, pa.BaseExtensionType):
        is_json = stored and kind.extension_name == _JSON
        return _decoded if is_json else _type_cleaner(kind.storage_type, notes, stored)
    is_list = (
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    )
    if any(check(kind) for check in is_list):
        inner = _type_cleaner(kind.value_type, notes, stored)
        return None if inner is None else lambda value: list(map(inner, value)) if isinstance(value, list) else value
    return None


def _decoded(value: Any) -> Any:
    """Return what a text of the type ``arrow.json`` says; text that is no JSON stays."""
    if not isinstance(value, str):
        return value
    try:
        return decode(value)
    except ValueError:
        return value


def _map_cleaner(inner: Clean | None) -> Clean:
    """Return the function that makes an object from the entries of a map, which Arrow gives as pairs."""

    def clean(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        entries = {key: inner(item) if inner is not None and item is not None else item for key, item in value}
        return entries if len(entries) == len(value) else value

    return clean
