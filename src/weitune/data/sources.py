"""From what the recipe names to files, and from a file to its rows.

    a file          .json .jsonl .csv .tsv .parquet, each also .gz or .zst
    a folder        every such file below it, in the order of their names
    builtin:NAME    a data set that ships with weitune
    owner/name      a data set on the Hugging Face hub; `owner/name:split`, `owner/name/config:split`

Nothing is unpacked or loaded whole; every reader streams.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from weitune.data.conversation import Origin
from weitune.data.jsonrows import json_rows
from weitune.data.problems import Problem, Problems
from weitune.data.rows import RawRow
from weitune.data.tablerows import csv_rows, parquet_rows, present
from weitune.data.textfile import FileFacts, blocks, examine, open_text

_KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_PACKED = (".gz", ".zst", ".gzip", ".zstd")
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?::([\w.+\[\]%:-]+))?")
_KNOWN = "a .json, .jsonl, .csv, .tsv or .parquet file (also .gz or .zst)"


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or one data set on the hub, before it is read; ``given`` is the name that stood for it."""

    name: str
    kind: str
    given: str
    path: Path | None = None
    facts: FileFacts | None = None
    table: Any = None
    """The Arrow data set, if the source is one of the hub's."""


def find_sources(names: Iterable[str], problems: Problems) -> list[Source]:
    """Return every file that ``names`` stand for, examined (hash and encoding); what is wrong goes to ``problems``."""
    sources = []
    for name in names:
        for source in _expand(name, problems):
            examined = _examined(source, problems)
            if examined is not None:
                sources.append(examined)
    return sources


def _expand(name: str, problems: Problems) -> Iterator[Source]:
    path = Path(name).expanduser()
    if name.startswith("builtin:"):
        yield from _shipped(name, problems)
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file))
        if not files:
            problems.add([Problem("no data", f"{_KNOWN} in the folder", "none", "Name another folder.", name)], rows=0)
        yield from (Source(str(file), _kind(file) or "", name, file) for file in files)
    elif path.exists():
        kind = _kind(path)
        if kind is None:
            problems.add(
                [
                    Problem(
                        "unknown file type",
                        _KNOWN,
                        f"'{path.suffix or path.name}'",
                        "Rename the file after what it holds, or convert it.",
                        name,
                    )
                ],
                rows=0,
            )
        else:
            yield Source(name, kind, name, path)
    elif _HUB_ID.fullmatch(name) and _kind(path) is None:
        yield Source(name, "hub", name)
    else:
        problems.add([Problem("missing file", "a file or folder", "nothing there", _nearest(path), name)], rows=0)


def _shipped(name: str, problems: Problems) -> Iterator[Source]:
    folder = Path(__file__).parent / "builtin"
    path = folder / f"{name.removeprefix('builtin:')}.jsonl"
    shipped = sorted(f"builtin:{entry.stem}" for entry in folder.glob("*.jsonl"))
    if f"builtin:{path.stem}" in shipped:
        yield Source(name, "json", name, path)
    else:
        cure = f"Name one of these: {', '.join(shipped)}."
        problems.add([Problem("unknown built-in data", "a data set that ships with weitune", name, cure, name)], rows=0)


def _kind(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return _KINDS.get(suffixes[-1]) if suffixes else None


def _nearest(path: Path) -> str:
    """Return a cure that names the file probably meant."""
    import difflib

    folder = path.parent
    there = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.6)
    hint = f" Did you mean '{folder / near[0]}'?" if near else ""
    return f"Check the path; it starts from the folder you are in.{hint}"


def _examined(source: Source, problems: Problems) -> Source | None:
    """Return ``source`` with the facts of its file, or None if there is nothing to read."""
    if source.path is None:
        return _from_hub(source, problems)
    try:
        facts = examine(source.path, text=source.kind != "parquet")
    except OSError as error:
        problems.add([_unreadable(source.name, error)], rows=0)
        return None
    if facts.size_bytes == 0:
        problems.add(
            [Problem("empty file", "rows", "an empty file", "Put rows into it, or leave it out.", source.name)], rows=0
        )
        return None
    return replace(source, facts=facts)


def _unreadable(file: str, error: OSError, row: int | None = None) -> Problem:
    cure = "Make the file readable for you." if isinstance(error, PermissionError) else "Copy or pack the file again."
    found = error.strerror or " ".join(str(error).split())[:120]
    return Problem("unreadable file", "a readable file", found, cure, file, row)


def raw_rows(source: Source) -> Iterator[RawRow | Problem]:
    """Yield the rows of ``source`` in order; a fault that costs rows is a Problem in their place."""
    row = 0
    item: RawRow | Problem | None = None
    try:
        for item in _read(source):
            row = item.origin.row if isinstance(item, RawRow) else item.row or row
            yield item
    except OSError as error:
        yield _unreadable(source.name, error, row + 1)
    except UnicodeDecodeError as error:
        yield Problem(
            "undecodable text", f"{error.encoding} text", error.reason, "Save the file as UTF-8.", source.name, row + 1
        )
    if item is None and row == 0:
        yield Problem("no rows", "rows", "none", "Put rows into it, or leave it out.", source.name)


def _read(source: Source) -> Iterator[RawRow | Problem]:
    if source.path is None:
        for row, value in enumerate(source.table, 1):
            yield RawRow(Origin(source.name, row), present(value))
    elif source.kind == "parquet":
        yield from _parquet_file_rows(source)
    else:
        encoding = source.facts.encoding if source.facts else "utf-8"
        with open_text(source.path, encoding) as stream:
            if source.kind == "json":
                yield from json_rows(stream, source.name)
            else:
                yield from csv_rows(stream, source.name, "," if source.kind == "csv" else "\t")


def _parquet_file_rows(source: Source) -> Iterator[RawRow | Problem]:
    assert source.path is not None  # noqa: S101  (for mypy)
    if source.facts is None or source.facts.compression is None:
        yield from parquet_rows(source.path, source.name)
        return
    with tempfile.TemporaryFile() as unpacked:  # Parquet is read from its end
        for block in blocks(source.path):
            unpacked.write(block)
        unpacked.seek(0)
        yield from parquet_rows(unpacked, source.name)


def _from_hub(source: Source, problems: Problems) -> Source | None:
    """Return ``source`` with its table, downloaded once and memory-mapped by `datasets`, and the hash of its rows.

    `datasets` itself refuses data sets that would run code of their own.
    """
    match = _HUB_ID.fullmatch(source.name)
    repository, config, split = match.groups() if match else (source.name, None, None)
    try:
        import datasets

        table = datasets.load_dataset(repository, config, split=split or "train")
    except Exception as error:  # noqa: BLE001  (the hub's libraries raise dozens of kinds; all mean: not available)
        problem = Problem(
            "data set not available",
            "a file, or a data set on the Hugging Face hub",
            " ".join(str(error).split())[:200] or type(error).__name__,
            "Check the name, the network and your access; a local file needs its full path.",
            source.name,
        )
        problems.add([problem], rows=0)
        return None
    digest = hashlib.sha256()
    for batch in table.with_format("arrow").iter(batch_size=1000):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_table(batch)
        digest.update(sink.getvalue())
    return replace(source, table=table, facts=FileFacts(digest.hexdigest(), table.dataset_size or 0, None, ""))
