"""A download: whether there is room for it, and how many of its bytes have come.

Hugging Face   its client draws a bar of bytes, of the class that it is given
ModelScope     its client calls back for every file
a package      pip says nothing, but the file that it writes grows
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from weitune.errors import InputError, ModelError
from weitune.files.cache import shortage
from weitune.model.load.weight_files import weight_files
from weitune.progress import Progress, enter_phase

_ASK_SECONDS = 10.0


def check_room_on_disk(model: str, revision: str | None, wanted: Sequence[str], unwanted: Sequence[str]) -> None:
    """Raise InputError if the files of ``model`` that are not here yet need more room than the hub's cache has.

    ``wanted`` and ``unwanted`` are patterns of file names. The hub is asked only if weights are missing. If it
    cannot be reached, or does not give sizes, nothing is refused: the download itself reports what is wrong.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE or _has_weights(model, revision):
        return
    try:
        info = HfApi().model_info(model, revision=revision, files_metadata=True, timeout=_ASK_SECONDS)
    except Exception:  # noqa: BLE001  (whatever it is, the download runs into it too, and explains it)
        return
    sizes = {file.rfilename: file.size for file in info.siblings or () if file.size}
    names = [name for name in sizes if _matches(name, wanted) and not _matches(name, unwanted)]
    need = sum(sizes[name] for name in names if not _cached(model, name, info.sha))
    if short := shortage(Path(constants.HF_HUB_CACHE), need):
        raise InputError("model.hub_download.too_little", **short, model=model)


def counting_bar() -> type[Any]:
    """Return the class of the hub client's bars, one that tells the phase ``downloading`` in bytes.

    The client has one bar for the bytes of all files, whose total grows as it learns their sizes.
    """
    from huggingface_hub.utils.tqdm import tqdm

    class CountingBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts = options.get("unit") == "B" and not str(options.get("name")).endswith(".transfer")
            self._bytes = int(options.get("initial") or 0)
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts and n:
                self._bytes += int(n)
                enter_phase("downloading", self._bytes, int(self.total or 0) or None)
            drawn: bool | None = super().update(n)
            return drawn

    return CountingBar


@contextmanager
def byte_bar(title: str) -> Iterator[Progress]:
    """Draw a bar like that of the hub's client on a terminal, and tell the phase ``downloading``, while the block runs.

    What it yields is called with the bytes that have come and those in all.
    """
    from huggingface_hub.utils.tqdm import tqdm

    enter_phase("downloading")
    with tqdm(desc=title, unit="B", unit_scale=True, disable=None) as bar:  # type: ignore[no-untyped-call]

        def told(done: int, total: int | None) -> None:
            bar.n, bar.total = done, total
            bar.refresh()
            enter_phase("downloading", done, total)

        yield told


def counting_callback(told: Progress) -> type[Any]:
    """Return a class of callbacks for ModelScope's client, which makes one for each file and calls it from threads.

    ``told`` is called with the bytes of all files so far. A file that is begun again counts from its beginning.
    """
    lock = threading.Lock()
    sizes: dict[str, int] = {}
    come: dict[str, int] = {}

    class Counting:
        def __init__(self, filename: str, file_size: int) -> None:
            self.filename, self.file_size = filename, file_size
            with lock:
                sizes[filename], come[filename] = max(0, file_size), 0

        def update(self, size: int) -> None:
            with lock:
                come[self.filename] += size
                told(sum(come.values()), sum(sizes.values()))

        def end(self) -> None:
            """Nothing is left to do."""

    return Counting


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether one of ``patterns`` matches ``name``, as the hub's client does: a star matches slashes too."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def _has_weights(model: str, revision: str | None) -> bool:
    """Return whether the cache has a snapshot with weights, every file of which is there."""
    config = _cached(model, "config.json", revision)
    try:
        return config is not None and all(path.is_file() for path in weight_files(config.parent))
    except ModelError:  # files are missing
        return False


def _cached(model: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import constants, try_to_load_from_cache

    path = try_to_load_from_cache(model, name, cache_dir=constants.HF_HUB_CACHE, revision=revision)
    return Path(path) if isinstance(path, str) else None
