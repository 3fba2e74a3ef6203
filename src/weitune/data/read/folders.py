"""Which files of a folder are data, and data sets that `datasets` has saved to a folder.

    folder/                          every data file below it, in the order of their names
        .ipynb_checkpoints/ ._a.json     hidden: not data; nor is ~$a.csv, which Excel keeps while a file is open
    saved/                           state.json     the Arrow files that it lists, in that order
    saved/                           dataset_dict.json     one such folder for each split: `saved:train`

Links to folders are followed, each folder once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from weitune.data.problems import Problem, data_problem, shown_name
from weitune.messages import say

_NOT_DATA = frozenset({"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "__MACOSX"})
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def files_below(folder: Path, is_data: Callable[[Path], bool], split: str | None = None) -> Iterator[Path | Problem]:
    """Yield the data files below ``folder`` in the order of their names, and what cannot be read there.

    ``split`` names a part of a saved data set.
    """
    yield from _below(folder, is_data, split, set())


def _below(
    folder: Path, is_data: Callable[[Path], bool], split: str | None, visited: set[tuple[int, int]]
) -> Iterator[Path | Problem]:
    try:
        here = folder.stat()
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield data_problem("data.folders.unreadable_folder", file=str(folder), strerror=error.strerror or str(error))
        return
    if (here.st_dev, here.st_ino) in visited:
        return
    visited.add((here.st_dev, here.st_ino))
    names = {entry.name for entry in entries}
    if _SPLITS in names:
        yield from _split_files(folder, is_data, split, visited)
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
            yield from _below(entry, is_data, None, visited)
        elif is_data(entry) and not (entry.suffix == ".arrow" and entry.name.startswith("cache-")):
            yield entry


def _split_files(
    folder: Path, is_data: Callable[[Path], bool], split: str | None, visited: set[tuple[int, int]]
) -> Iterator[Path | Problem]:
    """Yield the files of one split of a saved data set."""
    found = _read(folder / _SPLITS)
    names = found if isinstance(found, Problem) else found.get("splits")
    if isinstance(names, Problem):
        yield names
        return
    splits = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    if split is None and len(splits) != 1:
        shown = ", ".join(map(shown_name, splits)) or "none"
        yield data_problem(
            "data.folders.several_splits",
            file=str(folder),
            shown=shown,
            folder=folder,
            detail=splits[0] if splits else "SPLIT",
        )
        return
    chosen = split if split is not None else splits[0]
    if chosen not in splits or os.sep in chosen:
        yield _no_split(folder, chosen, splits)
        return
    yield from _below(folder / chosen, is_data, None, visited)


def _saved_files(folder: Path) -> Iterator[Path | Problem]:
    """Yield the Arrow files of a saved data set; others beside them are what `datasets` keeps for itself."""
    state = _read(folder / _STATE)
    if isinstance(state, Problem):
        yield state
        return
    listed = state.get("_data_files")
    names = [item.get("filename") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    fix = say("data.folders.save_data_set_again")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        yield data_problem("data.folders.unknown_data_set_2", file=str(folder), fix=fix)
        return
    if not names:
        yield data_problem("data.folders.unknown_data_set_3", file=str(folder), state=_STATE, fix=fix)
    for name in names:
        if isinstance(name, str) and Path(name).name == name and (folder / name).is_file():
            yield folder / name
        else:
            yield data_problem("data.folders.missing_file", file=str(folder), state=_STATE, name=name, fix=fix)


def _read(path: Path) -> dict[str, object] | Problem:
    """Return the object in a file that `datasets` has written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        found = error
    if isinstance(found, dict):
        return found
    return data_problem("data.folders.unknown_data_set", file=str(path))


def _no_split(folder: Path, split: str, splits: list[str]) -> Problem:
    found = f"the splits {', '.join(map(shown_name, splits))}" if splits else "a folder without splits"
    return data_problem("data.folders.missing_split", file=str(folder), split=shown_name(split), found=found)
