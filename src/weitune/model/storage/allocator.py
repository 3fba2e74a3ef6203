"""Control what glibc does with the memory of freed tensors; see mallopt(3) and madvise(2). No effect elsewhere."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch


def keep_freed_memory() -> None:
    """Let this process reuse the memory that it frees. The peak stays the same.

    A training step frees and allocates the same large tensors over and over. By default each goes back to the system
    and comes again page by page: some 50,000 page faults a step for Qwen2.5-0.5B.
    """
    _glibc("mallopt", _MMAP_MAX, 0)
    _glibc("mallopt", _TRIM_THRESHOLD, 2**31 - 1)


def release_freed_memory() -> None:
    """Return the freed memory to the system. Call this before a phase with tensors of other sizes.

    Otherwise they do not fit the holes of the freed ones, and the peak is the sum of both phases. See malloc_trim(3).
    """
    _spare.clear()
    _glibc("malloc_trim", 0)


@contextmanager
def releasing_in_the_end() -> Iterator[None]:
    """Call :func:`release_freed_memory` when the block ends, also if it fails."""
    try:
        yield
    finally:
        release_freed_memory()


@contextmanager
def releasing_freed_memory(files: Iterable[Path] = ()) -> Iterator[None]:
    """Return the memory of each tensor that is freed in the block at once, and often that of the pages of ``files``.

    For loading with conversion: freed tensors would leave holes that no later tensor fits, and the pages of a mapped
    file that have been read would stay resident.
    """
    ended = threading.Event()
    watch = threading.Thread(target=_release_pages, args=({str(f.resolve()) for f in files}, ended), daemon=True)
    _glibc("mallopt", _MMAP_MAX, 1 << 16)
    _glibc("mallopt", _MMAP_THRESHOLD, 1 << 20)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()
        _glibc("mallopt", _MMAP_THRESHOLD, 1 << 25)  # the values up to which glibc itself lets them rise
        _glibc("mallopt", _TRIM_THRESHOLD, 1 << 26)


@contextmanager
def empty_outside_heap(rows: int, columns: int, like: torch.Tensor) -> Iterator[torch.Tensor]:
    """Lend an uninitialised matrix (rows, columns) of the dtype and on the device of ``like`` for the block.

    A large one on a CPU is mapped outside the heap. In the heap it would leave a hole that small tensors fill, so that
    it would not fit again. Its pages have 2 MiB if the system has such pages: a few hundred page faults less. The
    memory is kept for the next matrix until :func:`release_freed_memory`, because the system clears new pages.
    """
    size = rows * columns * like.element_size()
    if sys.platform != "linux" or like.device.type != "cpu" or size < _LARGE:
        yield like.new_empty(rows, columns)
        return
    memory = _spare.pop() if _spare else None
    if memory is None or len(memory) < size:
        memory = _mapped(size)
    yield torch.frombuffer(memory, dtype=like.dtype, count=rows * columns).view(rows, columns)
    _spare[:] = [memory]


_spare: list[mmap.mmap] = []
"""The memory that was lent last, unless it is lent now."""


def _mapped(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_LARGE = 1 << 25
_MADV_PAGEOUT = 21
"""Safe even if the address has been mapped again since: no data is lost."""


def _glibc(function: str, *numbers: int) -> None:
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        getattr(ctypes.CDLL("libc.so.6"), function)(*numbers)


def _release_pages(paths: set[str], ended: threading.Event) -> None:
    """Ask the system ten times a second and at the end to page the mapped ``paths`` out."""
    if sys.platform != "linux" or not paths:
        return
    libc = ctypes.CDLL(None)
    done = False
    while not done:
        done = ended.wait(0.1)
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, *_, path = line.split(maxsplit=5)
            if path in paths:
                first, last = (int(address, 16) for address in span.split("-"))
                libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_PAGEOUT)
