"""A source of rows, its type, the encoding that the user gave for it, and its rows before their format is known."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from weitune.data.conversation import Origin
from weitune.data.problems import Problem
from weitune.data.read.text_file import FileFacts, GivenEncoding
from weitune.files.paths import user_path
from weitune.messages import say

BUILTIN = "builtin:"
_KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_TEXT_KINDS = ("json", "csv", "tsv")
_COMPRESSED = (".gz", ".zst", ".gzip", ".zstd")


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or one data set on the hub; ``given`` is the name in the recipe that it belongs to."""

    name: str
    kind: str
    given: str
    path: Path | None = None
    facts: FileFacts | None = None
    table: Any = None
    """The data set of `datasets`, if the source is on the hub."""
    part: str | None = None
    """The field of a JSON object that has the rows, if the user named it."""

    @property
    def is_text(self) -> bool:
        return self.kind in _TEXT_KINDS

    def is_named(self, name: str) -> bool:
        """Return whether ``name`` is the name of this source, as given or as a path, or of a folder around it."""
        return name in {self.name, self.given} or (self.path is not None and contains(name, self.path))


class RawRow(NamedTuple):
    """A row's value, its place, and the problems that are already known."""

    origin: Origin
    value: Any
    problems: tuple[Problem, ...] = ()


class BlankRow(NamedTuple):
    """A row of a table in which every cell is empty."""

    origin: Origin


Raw = RawRow | BlankRow | Problem
"""What a reader yields for a row, or for a fault that loses rows."""


def blank_reason() -> str:
    """Return why blank rows are set aside; reports count them under these words."""
    return say("data.source.only_empty_cells")


def kind_of(path: Path) -> str | None:
    """Return the type of a file by its suffix, or None if it is not a data file."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return _KINDS.get(suffixes[-1]) if suffixes else None


def contains(name: str, path: Path) -> bool:
    """Return whether ``name`` is ``path`` or a folder around it."""
    inner, outer = (Path(os.path.abspath(each)) for each in (path, user_path(name)))  # noqa: PTH100  (keeps links)
    return outer == inner or outer in inner.parents


class GivenEncodings:
    """The ``encoding`` option: None, one for all text files, or one each for files and folders by name."""

    def __init__(self, encoding: str | Mapping[str, str] | None = None) -> None:
        self._of_all = encoding if isinstance(encoding, str) else None
        self._by_name = {} if encoding is None or isinstance(encoding, str) else dict(encoding)

    def of(self, source: Source) -> GivenEncoding | None:
        """Return the encoding given for ``source``, under the longest of its names; None if none was given."""
        if not source.is_text or source.name.startswith(BUILTIN):
            return None
        if self._of_all is not None:
            return GivenEncoding(self._of_all)
        names = filter(source.is_named, self._by_name)
        name = max(names, key=len, default=None)
        return GivenEncoding(self._by_name[name], of_this_file=True) if name is not None else None

    def unused(self, sources: Iterable[Source]) -> list[str]:
        """Return the names in the option that are names of none of ``sources``."""
        text_files = [source for source in sources if source.is_text]
        return [name for name in self._by_name if not any(source.is_named(name) for source in text_files)]
