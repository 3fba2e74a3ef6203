"""From what the recipe names to files, and from a file to its rows.

    a file          .json .jsonl .csv .tsv .parquet .arrow, each also .gz or .zst
    file:part       the field `part` of the object in a JSON file (:mod:`.containers`)
    a folder        every such file below it, in the order of their names (:mod:`.folders`)
    folder:split    one split of a data set that was saved to the folder
    builtin:NAME    a data set that ships with weitune
    owner/name      a data set on the Hugging Face hub; `owner/name:split`, `owner/name/config:split`

Nothing is unpacked or loaded whole; every reader streams.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from weitune.data.formats.containers import Shape
from weitune.data.problems import Problem, Problems, data_problem, shown_name
from weitune.data.read.arrow_rows import arrow_rows, dataset_rows, parquet_rows
from weitune.data.read.folders import files_below
from weitune.data.read.json_rows import json_rows
from weitune.data.read.rows import BlankRow, Notes, RawRow
from weitune.data.read.table_rows import csv_rows
from weitune.data.read.text_file import Codec, FileFacts, blocks, examine, open_text
from weitune.files.paths import HUB_ID, user_path
from weitune.messages import say

_KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_TEXTS = ("json", "csv", "tsv")
_PACKED = (".gz", ".zst", ".gzip", ".zstd")
_SHIPPED = "builtin:"
_HUB_ID = re.compile(rf"({HUB_ID})(?:/([\w.-]+))?(?::([\w.+\[\]%:-]+))?")
_KNOWN = "a .json, .jsonl, .csv, .tsv, .parquet or .arrow file (also .gz or .zst)"

Raw = RawRow | BlankRow | Problem


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
    part: str | None = None
    """The field of a JSON object that has the rows, if it was named."""

    @property
    def is_text(self) -> bool:
        """Whether the source is a file of text."""
        return self.kind in _TEXTS


CodecOf = Callable[[Source], Codec | None]


def find_sources(names: Iterable[str], problems: Problems, codec_of: CodecOf = lambda _: None) -> list[Source]:
    """Return every file that ``names`` stand for, examined (hash and encoding); what is wrong goes to ``problems``.

    ``codec_of`` returns the encoding that was said of a file of text, or None.
    """
    sources = []
    for name in names:
        try:
            found = list(_expand(name, problems))
        except OSError as error:  # a name that is too long, or below a folder that may not be entered
            problems.add([_unreadable(name, error)], rows=0)
            continue
        for source in found:
            examined = _examined(source, problems, codec_of)
            if examined is not None:
                sources.append(examined)
    return sources


def codecs_said(encoding: str | Mapping[str, str] | None) -> tuple[CodecOf, Callable[[Iterable[Source]], list[str]]]:
    """Return what gives the encoding of a file of text, and what tells which file names of ``encoding`` are of none.

    A name stands for a file, or for all files of a folder; the name that says most decides.
    """
    said = {} if encoding is None or isinstance(encoding, str) else dict(encoding)

    def codec_of(source: Source) -> Codec | None:
        if isinstance(encoding, str):
            return Codec(encoding)
        names = [name for name in said if stands_for(name, source)]
        return Codec(said[max(names, key=len)], of_this_file=True) if names else None

    def of_none(sources: Iterable[Source]) -> list[str]:
        texts = [source for source in sources if source.is_text]
        return [name for name in said if not any(stands_for(name, source) for source in texts)]

    return codec_of, of_none


def stands_for(name: str, source: Source) -> bool:
    """Tell whether ``name`` is that of ``source``, as it was given or as a path, or of a folder it lies in."""
    return name in {source.name, source.given} or (source.path is not None and contains(name, source.path))


def contains(name: str, path: Path) -> bool:
    """Tell whether ``name`` is the path of ``path`` or of a folder that it lies in."""
    whole, outer = (Path(os.path.abspath(each)) for each in (path, user_path(name)))  # noqa: PTH100  (keeps links)
    return outer == whole or outer in whole.parents


def _expand(name: str, problems: Problems) -> Iterator[Source]:
    path, part = _split_name(name)
    if name.startswith(_SHIPPED):
        yield from _shipped(name, problems)
    elif path.is_dir():
        yield from _folder(name, path, part, problems)
    elif path.exists():
        yield from _file(name, path, part, problems)
    elif path.is_symlink():
        problems.add([_broken_link(name)], rows=0)
    elif _HUB_ID.fullmatch(name) and _kind(path) is None:
        yield Source(name, "hub", name)
    else:
        problems.add([data_problem("data.sources.missing_file", file=name, nearest=_nearest(path))], rows=0)


def _split_name(name: str) -> tuple[Path, str | None]:
    """Return the path in ``name`` and the part of it that is named behind a colon, if there is no file of that name.

    The colon behind a drive's letter names no part.
    """
    path = user_path(name)
    at = len(name)
    while not os.path.lexists(path) and (at := name.rfind(":", 0, at)) > 0:
        before, part = user_path(name[:at]), name[at + 1 :]
        if part and not part.startswith(("/", "\\")) and before.exists():
            return before, part
    return path, None


def _file(name: str, path: Path, part: str | None, problems: Problems) -> Iterator[Source]:
    kind = _kind(path)
    if not path.is_file():
        fix = say("data.sources.write_rows_file_name")
        problems.add([data_problem("data.sources.not_file_2", file=name, fix=fix)], rows=0)
    elif kind is None:
        found, fix = f"'{path.suffix or path.name}'", "Rename the file after what it holds, or convert it."
        problems.add(
            [data_problem("data.sources.unknown_file_type", file=name, known=_KNOWN, found=shown_name(found), fix=fix)],
            rows=0,
        )
    elif part is not None and kind != "json":
        fix = say("data.sources.leave_out", part=part)
        problems.add([data_problem("data.sources.missing_part", file=name, kind=kind, fix=fix)], rows=0)
    else:
        yield Source(name, kind, name, path, part=part)


def _folder(name: str, path: Path, part: str | None, problems: Problems) -> Iterator[Source]:
    found = list(files_below(path, lambda file: _kind(file) is not None, part))
    for item in found:
        if isinstance(item, Problem):
            problems.add([item], rows=0)
        elif item.is_file():
            yield Source(str(item), _kind(item) or "", name, item)
        else:
            problems.add([_broken_link(str(item))], rows=0)
    if not found:
        problems.add([data_problem("data.sources.no_data", file=name, known=_KNOWN)], rows=0)


def _broken_link(name: str) -> Problem:
    return data_problem("data.sources.not_file", file=name)


def _shipped(name: str, problems: Problems) -> Iterator[Source]:
    folder = Path(__file__).parents[1] / "builtin"
    path = folder / f"{name.removeprefix(_SHIPPED)}.jsonl"
    shipped = sorted(f"builtin:{entry.stem}" for entry in folder.glob("*.jsonl"))
    if f"builtin:{path.stem}" in shipped:
        yield Source(name, "json", name, path)
    else:
        problems.add(
            [data_problem("data.sources.unknown_built_data", file=name, name=name, shipped=", ".join(shipped))], rows=0
        )


def _kind(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return _KINDS.get(suffixes[-1]) if suffixes else None


def _nearest(path: Path) -> str:
    """Return a fix that names the file probably meant."""
    import difflib

    folder = path.parent
    try:
        there = [entry.name for entry in folder.iterdir()]
    except OSError:
        there = []
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.6)
    hint = f" Did you mean '{shown_name(str(folder / near[0]))}'?" if near else ""
    return f"Check the path; it starts from the folder you are in.{hint}"


def _examined(source: Source, problems: Problems, codec_of: CodecOf) -> Source | None:
    """Return ``source`` with the facts of its file, or None if there is nothing to read."""
    if source.path is None:
        return _from_hub(source, problems)
    try:
        codec = codec_of(source) if source.is_text and not source.name.startswith(_SHIPPED) else None
        facts = examine(source.path, source.is_text, codec)
    except OSError as error:
        problems.add([_unreadable(source.name, error)], rows=0)
        return None
    if facts.size_bytes == 0:
        problems.add([data_problem("data.sources.empty_file", file=source.name)], rows=0)
        return None
    if facts.fault is not None:
        problems.add([replace(facts.fault, file=source.name)], rows=0)
        return None
    return replace(source, facts=facts)


def _unreadable(file: str, error: OSError, row: int | None = None) -> Problem:
    fix = "Make the file readable for you." if isinstance(error, PermissionError) else "Copy or pack the file again."
    found = error.strerror or " ".join(str(error).split())[:120]
    return data_problem("data.sources.unreadable_file", file=file, row=row, found=found, fix=fix)


def raw_rows(source: Source, shape: Shape | None = None, notes: Notes | None = None) -> Iterator[Raw]:
    """Yield the rows of ``source`` in order; a fault that costs rows is a Problem in their place.

    ``shape`` tells rows from objects that hold rows; what is noticed besides goes to ``notes``.
    """
    row = 0
    found = say("data.sources.none")
    try:
        for item in _read(source, shape or Shape(), notes or Notes()):
            row = item.row or row if isinstance(item, Problem) else item.origin.row
            found = "only empty cells" if found and isinstance(item, BlankRow) else ""
            yield item
    except OSError as error:
        found = ""
        yield _unreadable(source.name, error, row + 1)
    except UnicodeError as error:
        found = ""
        encoding = source.facts.encoding if source.facts else "utf-8"
        yield data_problem(
            "data.sources.undecodable_text", file=source.name, row=row + 1, encoding=encoding, error=str(error)[:120]
        )
    if found:
        yield data_problem("data.sources.no_rows", file=source.name, found=found)


def _read(source: Source, shape: Shape, notes: Notes) -> Iterator[Raw]:
    if source.path is None:
        yield from dataset_rows(source.table, source.table.features.arrow_schema, source.name, notes)
    elif not source.is_text:
        rows = parquet_rows if source.kind == "parquet" else arrow_rows
        with _unpacked(source) as file:
            yield from rows(file, source.name, notes)
    else:
        encoding = source.facts.encoding if source.facts else "utf-8"
        if source.kind == "json":
            with open_text(source.path, encoding, newline=None) as stream:
                yield from json_rows(stream, source.name, source.part, shape, notes)
        else:
            with open_text(source.path, encoding) as stream:
                yield from csv_rows(stream, source.name, "," if source.kind == "csv" else "\t", notes)


@contextmanager
def _unpacked(source: Source) -> Iterator[Path | IO[bytes]]:
    """Give the file of ``source``, unpacked into a temporary one if need be: a table is read from its end."""
    assert source.path is not None  # noqa: S101  (for mypy)
    if source.facts is None or source.facts.compression is None:
        yield source.path
        return
    with tempfile.TemporaryFile() as unpacked:
        for block in blocks(source.path):
            unpacked.write(block)
        unpacked.seek(0)
        yield unpacked


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
        problem = data_problem(
            "data.sources.data_set_not_available",
            file=source.name,
            split=" ".join(str(error).split())[:200] or type(error).__name__,
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
