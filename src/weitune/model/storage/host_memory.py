"""How much memory this process may still take from its machine, with the limits that containers and jobs set.

On Linux the OOM killer gives no warning, so the numbers are those that the kernel decides by: the machine's
``MemAvailable``; for every control group around this process its limit less what is used and cannot be reclaimed
(cgroup v2: ``memory.max``, ``memory.current``; v1: ``memory.limit_in_bytes``, ``memory.usage_in_bytes``; reclaimable
pages of files are ``inactive_file`` and ``active_file`` in ``memory.stat``); and the process's own limits
(``ulimit -d`` and ``-v``) less what it has allocated (``VmData``, ``VmSize``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_NO_LIMIT = 1 << 60
"""Version 1 writes a number near 2^63 for no limit."""
_V2 = ("memory.max", "memory.current", "")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Memory in bytes: what may still be allocated, and the total."""

    available: int
    total: int


def host_memory(root: Path = Path("/")) -> HostMemory:
    """Return the tightest of the machine's memory and the limits around this process; ``root`` is for tests."""
    if sys.platform != "linux":
        return _machine()
    try:
        machine = _meminfo(root / "proc/meminfo")
    except (OSError, KeyError, ValueError):
        machine = _machine()
    return min([machine, *_groups(root), *_own_limits(root)], key=lambda memory: memory.available)


def _machine() -> HostMemory:
    import psutil

    memory = psutil.virtual_memory()
    return HostMemory(int(memory.available), int(memory.total))


def _meminfo(path: Path) -> HostMemory:
    kilobytes = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return HostMemory(*(1024 * int(kilobytes[key].split()[0]) for key in ("MemAvailable", "MemTotal")))


def _own_limits(root: Path) -> Iterator[HostMemory]:
    import resource

    try:
        status = dict(line.split(":", 1) for line in (root / "proc/self/status").read_text().splitlines())
        for limit, key in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
            most = resource.getrlimit(limit)[0]
            if most != resource.RLIM_INFINITY:
                yield HostMemory(max(0, most - 1024 * int(status[key].split()[0])), most)
    except (OSError, KeyError, ValueError):
        return


def _groups(root: Path) -> Iterator[HostMemory]:
    """Yield the limits of this process's control group and of every group that contains it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield from _limits(root / "sys/fs/cgroup", path, _V2)
        elif "memory" in controllers.split(","):
            yield from _limits(root / "sys/fs/cgroup/memory", path, _V1)


def _limits(mount: Path, path: str, names: tuple[str, str, str]) -> Iterator[HostMemory]:
    """Yield the limits of the group ``path`` and of its parents; a container may see the topmost only."""
    relative = PurePosixPath(path.lstrip("/"))
    for group in (relative, *relative.parents):
        try:
            limit = int((mount / group / names[0]).read_text())
            used = int((mount / group / names[1]).read_text())
            stat = dict(line.split() for line in (mount / group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group, or the word "max"
            continue
        if limit < _NO_LIMIT:
            files = sum(int(stat.get(f"{names[2]}{kind}_file", 0)) for kind in ("active", "inactive"))
            yield HostMemory(max(0, min(limit, limit - used + files)), limit)
