"""What the C library does with memory that tensors leave, where it is glibc; see mallopt(3) and madvise(2)."""

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
    """Let this process keep the memory that it frees for what it takes next, where the C library is glibc.

    A training step frees and takes the same large tensors again and again. By default each goes back to the system and
    comes again page by page, some 50,000 page faults a step for Qwen2.5-0.5B; the peak is the same. See mallopt(3).
    """
    _glibc("mallopt", _MMAP_MAX, 0)
    _glibc("mallopt", _TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed() -> None:
    """Give what :func:`keep_freed_memory` has kept back to the system: what comes next has other sizes.

    It would stay, in holes that the other sizes do not fit, and the peak would be the sum of both. See malloc_trim(3).
    """
    _apart.clear()
    _glibc("malloc_trim", 0)


@contextmanager
def giving_back(files: Iterable[Path] = ()) -> Iterator[None]:
    """Give every tensor that is freed in the block back to the system at once, and now and then the pages of ``files``.

    For loading with conversion: freed tensors would leave holes that nothing later fits, and what has been read of a
    mapped file would stay resident. Where the C library is not glibc or the system not Linux, less is given back.
    """
    ended = threading.Event()
    watch = threading.Thread(target=_give_back_pages, args=({str(f.resolve()) for f in files}, ended), daemon=True)
    _glibc("mallopt", _MMAP_MAX, 1 << 16)
    _glibc("mallopt", _MMAP_THRESHOLD, 1 << 20)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()
        _glibc("mallopt", _MMAP_THRESHOLD, 1 << 25)  # where glibc itself lets them rise to
        _glibc("mallopt", _TRIM_THRESHOLD, 1 << 26)


@contextmanager
def unwritten_apart(rows: int, columns: int, like: torch.Tensor) -> Iterator[torch.Tensor]:
    """Lend an unwritten matrix (rows, columns) of the format and on the device of ``like``, to the end of the block.

    A large one on a CPU is mapped apart from the heap, where it would leave a hole that small ones fill and it does not
    fit again; and in pages of 2 MiB where the system has them, for that is a few hundred page faults less for each. It
    stays for the next one, since new pages are cleared first, until :func:`give_back_freed`.
    """
    size = rows * columns * like.element_size()
    if sys.platform != "linux" or like.device.type != "cpu" or size < _LARGE:
        yield like.new_empty(rows, columns)
        return
    memory = _apart.pop() if _apart else None
    if memory is None or len(memory) < size:
        memory = _mapped(size)
    yield torch.frombuffer(memory, dtype=like.dtype, count=rows * columns).view(rows, columns)
    _apart[:] = [memory]


_apart: list[mmap.mmap] = []
"""What was lent last, if it is not lent now."""


def _mapped(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without such pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_LARGE = 1 << 25
_MADV_PAGEOUT = 21
"""It loses nothing, whatever lies at the address by then. See madvise(2)."""


def _glibc(function: str, *numbers: int) -> None:
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        getattr(ctypes.CDLL("libc.so.6"), function)(*numbers)


def _give_back_pages(paths: set[str], ended: threading.Event) -> None:
    """Ask, ten times a second and at the end, that the pages of mapped ``paths`` go back to the system."""
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
