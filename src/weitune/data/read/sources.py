"""The files and hub data sets that the names in a recipe stand for.

file            .json .jsonl .csv .tsv .parquet .arrow, each also .gz or .zst
file:part       the field `part` of the object in a JSON file (:mod:`.containers`)
folder          every such file in it and its subfolders, sorted by name (:mod:`.folders`)
folder:split    one split of a data set that was saved to the folder
builtin:NAME    a data set that ships with weitune
owner/name      a data set on the Hugging Face hub; `owner/name:split`, `owner/name/config:split`

Finding the sources reads every file once, for its hash and encoding.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from weitune.data.problems import Problem, Problems, data_problem, shown_error, shown_name
from weitune.data.read.folders import files_in
from weitune.data.read.source import BUILTIN, GivenEncodings, Source, kind_of
from weitune.data.read.text_file import FileFacts, examine, unreadable
from weitune.files.paths import HUB_ID, user_path

_HUB_ID = re.compile(rf"({HUB_ID})(?:/([\w.-]+))?(?::([\w.+\[\]%:-]+))?")


def find_sources(names: Iterable[str], problems: Problems, encodings: GivenEncodings | None = None) -> list[Source]:
    """Return every source that ``names`` stand for, with its facts; faults are added to ``problems``."""
    encodings = encodings or GivenEncodings()
    sources = []
    for name in names:
        for item in _expand(name):
            examined = item if isinstance(item, Problem) else _examined(item, encodings)
            if isinstance(examined, Problem):
                problems.add([examined], rows=0)
            else:
                sources.append(examined)
    return sources


def _expand(name: str) -> Iterator[Source | Problem]:
    try:
        yield from _named(name)
    except OSError as error:  # the name is too long, or there is no permission to look into the folder
        yield unreadable(name, error)


def is_on_hub(name: str) -> bool:
    """Return whether ``name`` can only be that of a data set on a hub: no such path is there, and it names no file."""
    match = _HUB_ID.fullmatch(name)
    if match is None or name.startswith(".") or _split_name(name)[0].exists():
        return False
    return kind_of(Path(name.removesuffix(f":{match[3]}"))) is None


def _named(name: str) -> Iterator[Source | Problem]:
    path, part = _split_name(name)
    if name.startswith(BUILTIN):
        yield _builtin(name)
    elif path.is_dir():
        yield from _folder(name, path, part)
    elif path.exists():
        yield _file(name, path, part)
    elif path.is_symlink():
        yield data_problem("data.sources.broken_link", file=name)
    elif is_on_hub(name):
        yield Source(name, "hub", name)
    elif (near := _similar_file(path)) is not None:
        yield data_problem("data.sources.missing_file_like_another", file=name, near=shown_name(str(near)))
    else:
        yield data_problem("data.sources.missing_file", file=name)


def _split_name(name: str) -> tuple[Path, str | None]:
    """Return the path in ``name``, and the part after a colon if there is no file ``name``.

    A colon after the letter of a drive does not count.
    """
    path = user_path(name)
    at = len(name)
    while not os.path.lexists(path) and (at := name.rfind(":", 0, at)) > 0:
        before, part = user_path(name[:at]), name[at + 1 :]
        if part and not part.startswith(("/", "\\")) and before.exists():
            return before, part
    return path, None


def _file(name: str, path: Path, part: str | None) -> Source | Problem:
    kind = kind_of(path)
    if not path.is_file():
        return data_problem("data.sources.device_or_pipe", file=name)
    if kind is None:
        suffix = shown_name(path.suffix or path.name)
        return data_problem("data.sources.unknown_file_type", file=name, suffix=suffix)
    if part is not None and kind != "json":
        return data_problem("data.sources.no_parts", file=name, kind=kind, part=part)
    return Source(name, kind, name, path, part=part)


def _folder(name: str, path: Path, part: str | None) -> Iterator[Source | Problem]:
    empty = True
    for item in files_in(path, lambda file: kind_of(file) is not None, part):
        empty = False
        if isinstance(item, Problem):
            yield item
        elif item.is_file():
            yield Source(str(item), kind_of(item) or "", name, item)
        else:
            yield data_problem("data.sources.broken_link", file=str(item))
    if empty:
        yield data_problem("data.sources.no_data", file=name)


def _builtin(name: str) -> Source | Problem:
    folder = Path(__file__).parents[1] / "builtin"
    known = sorted(BUILTIN + entry.stem for entry in folder.glob("*.jsonl"))
    if name in known:
        return Source(name, "json", name, folder / f"{name.removeprefix(BUILTIN)}.jsonl")
    return data_problem("data.sources.unknown_builtin", file=name, name=name, known=", ".join(known))


def _similar_file(path: Path) -> Path | None:
    import difflib

    try:
        there = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.6)
    return path.parent / near[0] if near else None


def _examined(source: Source, encodings: GivenEncodings) -> Source | Problem:
    if source.path is None:
        return _from_hub(source)
    try:
        facts = examine(source.path, source.is_text, encodings.of(source))
    except OSError as error:
        return unreadable(source.name, error)
    if facts.size_bytes == 0:
        return data_problem("data.sources.empty_file", file=source.name)
    return replace(facts.fault, file=source.name) if facts.fault is not None else replace(source, facts=facts)


def _from_hub(source: Source) -> Source | Problem:
    """Return ``source`` with its table, which `datasets` downloads once and maps into memory, and the hash of its rows.

    `datasets` refuses data sets that would run their own code.
    """
    match = _HUB_ID.fullmatch(source.name)
    repository, config, split = match.groups() if match else (source.name, None, None)
    try:
        import datasets

        table = datasets.load_dataset(repository, config, split=split or "train")
    except Exception as error:  # noqa: BLE001  (the hub's libraries raise dozens of types; all mean: not available)
        return data_problem("data.sources.data_set_not_available", file=source.name, reason=shown_error(error))
    digest = hashlib.sha256()
    for batch in table.with_format("arrow").iter(batch_size=1000):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_table(batch)
        digest.update(sink.getvalue())
    return replace(source, table=table, facts=FileFacts(digest.hexdigest(), table.dataset_size or 0, None, ""))
