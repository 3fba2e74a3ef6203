"""The data files of a folder, and data sets that `datasets` saved to a folder.

    folder/                          every data file in it and its subfolders, sorted by name
        .ipynb_checkpoints/ ._a.json     hidden, so not data; nor is ~$a.csv, which Excel keeps while a file is open
    saved/state.json                 the Arrow files that it lists, in that order
    saved/dataset_dict.json          one such folder for each split: `saved:train`

Links to folders are followed; each folder is read once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from weitune.data.problems import Problem, data_problem, shown_name

_NOT_DATA = frozenset({"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "__MACOSX"})
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def files_in(
    folder: Path, is_data: Callable[[Path], bool], split: str | None = None, visited: set[tuple[int, int]] | None = None
) -> Iterator[Path | Problem]:
    """Yield the data files in ``folder`` and its subfolders, sorted by name, and problems of what cannot be read.

    ``split`` is the name of one split of a saved data set; ``visited`` are devices and inodes of folders to leave out.
    """
    visited = set() if visited is None else visited
    try:
        here = folder.stat()
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield data_problem("data.folders.unreadable_folder", file=str(folder), reason=error.strerror or str(error))
        return
    if (here.st_dev, here.st_ino) in visited:
        return
    visited.add((here.st_dev, here.st_ino))
    names = {entry.name for entry in entries}
    if _SPLITS in names:
        chosen = _split_folder(folder, split)
        if isinstance(chosen, Problem):
            yield chosen
        else:
            yield from files_in(chosen, is_data, None, visited)
        return
    if split is not None:
        yield _no_split(folder, split, [])
        return
    if _STATE in names and any(entry.suffix == ".arrow" for entry in entries):
        yield from _saved_files(folder)
        return
    for entry in entries:
        if entry.name.startswith((".", "~$")) or entry.name in _NOT_DATA:
            continue
        if entry.is_dir():
            yield from files_in(entry, is_data, None, visited)
        elif is_data(entry) and not (entry.suffix == ".arrow" and entry.name.startswith("cache-")):
            yield entry


def _split_folder(folder: Path, split: str | None) -> Path | Problem:
    """Return the folder of a split of a saved data set; if ``split`` is None, of its only split."""
    listing = _read(folder / _SPLITS)
    if isinstance(listing, Problem):
        return listing
    names = listing.get("splits")
    splits = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    if split is None and not splits:
        return data_problem("data.folders.no_splits", file=str(folder), listing=_SPLITS)
    if split is None and len(splits) > 1:
        shown, first = ", ".join(map(shown_name, splits)), splits[0]
        return data_problem("data.folders.several_splits", file=str(folder), splits=shown, folder=folder, first=first)
    chosen = split if split is not None else splits[0]
    return folder / chosen if chosen in splits and os.sep not in chosen else _no_split(folder, chosen, splits)


def _saved_files(folder: Path) -> Iterator[Path | Problem]:
    state = _read(folder / _STATE)
    if isinstance(state, Problem):
        yield state
        return
    listed = state.get("_data_files")
    names = [item.get("filename") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    if state.get("_indices_files") or state.get("_indices_data_files"):
        yield data_problem("data.folders.indexed_data_set", file=str(folder))
        return
    if not names:
        yield data_problem("data.folders.no_files_listed", file=str(folder), listing=_STATE)
    for name in names:
        if isinstance(name, str) and Path(name).name == name and (folder / name).is_file():
            yield folder / name
        else:
            yield data_problem("data.folders.missing_file", file=str(folder), listing=_STATE, name=name)


def _read(path: Path) -> dict[str, object] | Problem:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else data_problem("data.folders.unreadable_listing", file=str(path))


def _no_split(folder: Path, split: str, splits: list[str]) -> Problem:
    message = "data.folders.missing_split" if splits else "data.folders.folder_without_splits"
    names = ", ".join(map(shown_name, splits))
    return data_problem(message, file=str(folder), split=shown_name(split), splits=names)
