"""The contents of the cache folder by kind, and how they are deleted.

    ~/.cache/weitune/                       XDG_CACHE_HOME applies
      data/<fingerprint>/                   prepared data: examples.arrow, groups.safetensors, report.json
      models/<name>/<file>.gguf             built-in models, unpacked
      tokenizers/<fingerprint>/             tokenizers of .gguf files, converted
      kept/<fingerprint>.safetensors        a base's answers to prompts that runs keep
      references/<fingerprint>.safetensors  log-probabilities that preferences compare with
      general/<fingerprint>.json            a base's answers to the general questions of evaluations
      gguf/<fingerprint>-<type>.gguf        bases for llama.cpp
      vllm/<runs>/                          chat template and generation config for vLLM

Only files with these names in these places are counted and deleted; others were not written by weitune. Links below the
cache folder are never followed. The file that marks an entry as complete is deleted first, so another process sees a
complete entry or none; files that it has open stay readable. Unfinished files (``….partial``) are left alone until
nothing has been written to them for a day.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from weitune.data.prepare.cache import EXAMPLES, GROUPS, REPORT
from weitune.files.cache import cache_folder
from weitune.gguf.types import GGUF_TYPES
from weitune.messages import say
from weitune.model.load.gguf_tokenizer import TOKENIZER_FILES
from weitune.model.load.locate import BUILTIN

Kind = Literal["data", "models", "tokenizers", "kept", "references", "general", "gguf", "vllm", "unfinished"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_DATA_FILES = re.compile("|".join(map(re.escape, (EXAMPLES, GROUPS, REPORT))))
_VLLM_FILES = re.compile(
    r"chat_template\.jinja|generation_config\.json|weitune_vllm/(?:middleware\.json|(?:middleware|place)\.py)|"
    r"weitune_vllm/__pycache__/(?:middleware|place)\.[\w.-]+|weitune_vllm\.(?:json|py)|__pycache__/weitune_vllm\.[\w.-]+|"
    r"adapter-\d+/adapter_(?:config\.json|model\.safetensors)"
)
_TOKENIZER_FILES = re.compile("|".join(map(re.escape, TOKENIZER_FILES)))
_DATA = re.compile(r"[0-9a-f]{32}")
_SINGLE: dict[Kind, re.Pattern[str]] = {
    "kept": re.compile(r"[0-9a-f]{32}\.safetensors"),
    "references": re.compile(r"[0-9a-f]{32}\.safetensors"),
    "general": re.compile(r"[0-9a-f]{32}\.json"),
}
"""Kinds whose entries are single files, and how these are named."""
_GGUF = re.compile(rf"[0-9a-f]{{32}}-(?:{'|'.join(GGUF_TYPES)})\.gguf")
_UNFINISHED = {
    "data": re.compile(r"[0-9a-f]{32}\.[0-9a-f]{8}\.partial"),
    "tokenizers": re.compile(r"[0-9a-f]{32}\.[0-9a-f]{8}\.partial"),
    **{kind: re.compile(rf"\.{name.pattern}\.\d+\.partial") for kind, name in _SINGLE.items()},
    "gguf": re.compile(rf"\.{_GGUF.pattern}\.\d+\.partial"),
    "models": re.compile(r"tmp\w{8}|\.[\w.-]+\.\d+\.partial"),
    "vllm": re.compile(r"\.\w{8}"),
}
_IN_USE_SECONDS = 24 * 3600
"""Something unfinished counts as abandoned if nothing has been written to it for so long."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in the cache that can be deleted as a whole."""

    kind: Kind
    path: Path
    files: tuple[Path, ...]
    """The files in it that weitune wrote."""
    bytes: int
    used: float
    """When it was last written or used, in seconds since the epoch."""
    owner: str
    """What it was made for."""

    @property
    def in_use(self) -> bool:
        return self.kind == "unfinished" and time.time() - self.used < _IN_USE_SECONDS


def entries(folder: Path | None = None) -> list[Entry]:
    """Return everything that weitune keeps in ``folder``, its cache if not given: by kind, the oldest first."""
    root = (folder or cache_folder()).resolve()  # the cache itself may be a link; nothing in it is followed
    kept = (entry for kind in (_data, _models, _tokenizers, _single, _gguf, _vllm, _unfinished) for entry in kind(root))
    return sorted(kept, key=lambda entry: (KINDS.index(entry.kind), entry.used, entry.path.name))


def unreadable(folder: Path | None = None) -> list[Path]:
    """Return the folders of the cache that this user cannot read, whose contents are therefore not listed."""
    root = (folder or cache_folder()).resolve()
    places = (root, *(root / kind for kind in KINDS))
    return [path for path in places if _is_folder(path) and not os.access(path, os.R_OK | os.X_OK)]


def delete(entry: Entry) -> int:
    """Delete ``entry`` and return how many bytes that freed. Raises OSError if the system refuses.

    Files that weitune did not write stay, and so does their folder. What another process deletes meanwhile is not
    counted.
    """
    freed = 0
    if entry.kind == "unfinished" and entry.path.is_dir():
        with suppress(FileNotFoundError):
            shutil.rmtree(entry.path)
            freed = entry.bytes
        return freed
    for path in reversed(entry.files):  # the file that marks an entry as complete goes first
        with suppress(FileNotFoundError):
            size = path.lstat().st_size
            path.unlink()
            freed += size
    if entry.path not in entry.files:
        _remove_empty({entry.path, *(up for path in entry.files for up in path.parents if entry.path in up.parents)})
    return freed


def _remove_empty(folders: set[Path]) -> None:
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):  # the deepest first
        with suppress(FileNotFoundError):
            if not any(folder.iterdir()):
                folder.rmdir()


def _data(root: Path) -> Iterator[Entry]:
    for path in _folders(root / "data", _DATA.fullmatch):
        yield from _entry("data", path, _files(path, _DATA_FILES), _sources(path / REPORT))


def _models(root: Path) -> Iterator[Entry]:
    for name, builtin in BUILTIN.items():
        for path in _folders(root / "models", {name}.__contains__):
            yield from _entry(
                "models", path, _files(path, re.compile(re.escape(Path(builtin.member).name))), f"builtin:{name}"
            )


def _tokenizers(root: Path) -> Iterator[Entry]:
    for path in _folders(root / "tokenizers", _DATA.fullmatch):
        yield from _entry("tokenizers", path, _files(path, _TOKENIZER_FILES), _about("tokenizers"))


def _single(root: Path) -> Iterator[Entry]:
    for kind, name in _SINGLE.items():
        for path in _children(root / kind):
            if name.fullmatch(path.name) and _is_file(path):
                yield from _entry(kind, path, (path,), _about(kind))


def _gguf(root: Path) -> Iterator[Entry]:
    for path in _children(root / "gguf"):
        if _GGUF.fullmatch(path.name) and _is_file(path):
            yield from _entry("gguf", path, (path,), _base_name(path))


def _vllm(root: Path) -> Iterator[Entry]:
    for path in _folders(root / "vllm", lambda name: not name.startswith(".")):
        yield from _entry("vllm", path, _files(path, _VLLM_FILES), path.name)


def _unfinished(root: Path) -> Iterator[Entry]:
    for kind, name in _UNFINISHED.items():
        folders = _folders(root / kind, BUILTIN.__contains__) if kind == "models" else [root / kind]
        for path in (path for folder in folders for path in _children(folder) if name.fullmatch(path.name)):
            inside = _files_below(path) if _is_folder(path) else (path,)
            yield from _entry("unfinished", path, inside, _about(kind), empty=_is_folder(path))


def _about(kind: str) -> str:
    return {
        "data": say("cli.cache.about_data"),
        "models": say("cli.cache.about_models"),
        "tokenizers": say("cli.cache.about_tokenizers"),
        "kept": say("cli.cache.about_kept"),
        "references": say("cli.cache.about_references"),
        "general": say("cli.cache.about_general"),
        "gguf": say("cli.cache.about_gguf"),
        "vllm": say("cli.cache.about_vllm"),
    }[kind]


def _entry(kind: Kind, path: Path, files: tuple[Path, ...], owner: str, *, empty: bool = False) -> Iterator[Entry]:
    try:
        statuses = [each.lstat() for each in files]
        times = [status.st_mtime for status in statuses] or [path.lstat().st_mtime]
    except OSError:
        return
    if files or empty:
        yield Entry(kind, path, files, sum(status.st_size for status in statuses), max(times), owner)


def _files(folder: Path, names: re.Pattern[str]) -> tuple[Path, ...]:
    """Return the files in ``folder`` and below with these ``names``, by their paths from there: its own first."""
    inside = [path for path in _files_below(folder) if names.fullmatch(path.relative_to(folder).as_posix())]
    return tuple(sorted(inside, key=lambda path: (len(path.parts), path)))


def _files_below(folder: Path) -> tuple[Path, ...]:
    paths = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    return tuple(path for path in paths if _is_file(path))


def _folders(folder: Path, wanted: Callable[[str], object]) -> Iterator[Path]:
    return (path for path in _children(folder) if wanted(path.name) and _is_folder(path))


def _children(folder: Path) -> list[Path]:
    """Return the sorted contents of ``folder``; none if it is a link or cannot be read."""
    try:
        return sorted(folder.iterdir()) if _is_folder(folder) else []
    except OSError:
        return []


def _is_folder(path: Path) -> bool:
    return _has_mode(path, stat.S_ISDIR)


def _is_file(path: Path) -> bool:
    return _has_mode(path, stat.S_ISREG)


def _has_mode(path: Path, test: Callable[[int], bool]) -> bool:
    try:
        return test(os.lstat(path).st_mode)
    except OSError:
        return False


def _sources(report: Path) -> str:
    try:
        names = [str(source["name"]) for source in json.loads(report.read_text(encoding="utf-8"))["sources"]]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    first = ", ".join(names[:3])
    return first if len(names) <= 3 else say("cli.cache.sources_and_more", sources=first, count=len(names) - 3)


def _base_name(path: Path) -> str:
    from weitune.gguf.header import read_header

    try:
        metadata = read_header(path).metadata
    except Exception:  # noqa: BLE001  (a file that is no GGUF file may be wrong in any way; it can be deleted all the same)
        return ""
    name = metadata.get("general.basename") or metadata.get("general.name")
    return str(name.value) if name else ""
