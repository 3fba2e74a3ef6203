"""Links between pages: from a run's report to those beside it and to comparisons, and from a comparison to reports.

``weitune compare`` notes its page in each run's folder, as a path from there; a report links to those that are still
where they were, in the run's folder or beside it, so that a folder of runs can be moved or copied as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from weitune.files.json_files import json_bytes, json_object
from weitune.files.publish import publish_bytes
from weitune.report.markup import text
from weitune.run.names import COMPARISONS, RECIPE, REPORT

_MOST = 20
"""Comparisons that a run's folder remembers, the newest last."""


def linked(targets: Iterable[tuple[str, Path]], folder: Path) -> str:
    """Return links to (name, file) from a page in ``folder``, in one line."""
    return " · ".join(f'<a href="{text(address(target, folder))}">{text(name)}</a>' for name, target in targets)


def address(target: Path, folder: Path) -> str:
    """Return the address of ``target``, relative to ``folder``; on another drive of Windows, its own."""
    try:
        return quote(Path(os.path.relpath(target, folder)).as_posix())
    except ValueError:
        return target.absolute().as_uri()


def siblings(run: Path) -> list[str]:
    """Return the names of other runs beside ``run`` that have a report."""
    place = run.absolute()
    folders = (each.parent for each in sorted(place.parent.glob(f"*/{REPORT}")))
    return [folder.name for folder in folders if folder.name != place.name and (folder / RECIPE).is_file()]


def comparisons(run: Path) -> list[Path]:
    """Return the pages of comparisons that the folder ``run`` knows of and that are there, the newest first."""
    noted = json_object(run / COMPARISONS).get("pages")
    names = [name for name in noted if isinstance(name, str)] if isinstance(noted, list) else []
    pages = [run / name for name in reversed(names) if not Path(name).is_absolute()]
    return [page for page in pages if _is_beside(page, run) and page.is_file()]


def note_comparison(run: Path, page: Path) -> bool:
    """Note in the folder ``run`` that it is compared on ``page``, and return whether its report will link to it.

    A page that lies elsewhere, or a folder that cannot be written, is left alone.
    """
    if not _is_beside(page, run):
        return False
    name = Path(os.path.relpath(page, run)).as_posix()
    known = [Path(os.path.relpath(each, run)).as_posix() for each in reversed(comparisons(run))]
    pages = [*(each for each in known if each != name), name][-_MOST:]
    with suppress(OSError):
        publish_bytes(json_bytes({"pages": pages}, indent=1), run / COMPARISONS)
        return True
    return False


def _is_beside(page: Path, run: Path) -> bool:
    """Return whether ``page`` is an HTML page in the folder that ``run`` lies in, or below it."""
    try:
        return page.suffix == ".html" and page.resolve().is_relative_to(run.resolve().parent)
    except (OSError, ValueError):  # no path at all
        return False
