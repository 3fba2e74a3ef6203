"""Free memory as the kernel counts it, read from a made-up /proc and /sys."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from weitune.model.storage.host_memory import HostMemory, host_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these files are Linux's")
GIB = 1 << 30
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
_V2 = ("memory.max", "memory.current", "")


def machine(root: Path, groups: str = "") -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {40 << 20} kB\nX: 1\n")
    (root / "proc/self/cgroup").write_text(groups)


def group(folder: Path, names: tuple[str, str, str], limit: int | str, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    half = cached // 2
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]}active_file {half}\n{names[2]}inactive_file {half}\n")


def test_a_machine_without_groups(tmp_path: Path) -> None:
    machine(tmp_path)
    assert host_memory(tmp_path) == HostMemory(40 * GIB, 64 * GIB)


def test_version_2_counts_what_can_be_given_back(tmp_path: Path) -> None:
    machine(tmp_path, "0::/jobs/this\n")
    group(tmp_path / "sys/fs/cgroup/jobs/this", _V2, 16 * GIB, 10 * GIB, 2 * GIB)
    assert host_memory(tmp_path) == HostMemory(8 * GIB, 16 * GIB)


def test_the_tightest_group_around_it_counts(tmp_path: Path) -> None:
    machine(tmp_path, "0::/jobs/this\n")
    group(tmp_path / "sys/fs/cgroup/jobs/this", _V2, "max", 3 * GIB)
    group(tmp_path / "sys/fs/cgroup/jobs", _V2, 8 * GIB, 5 * GIB)
    assert host_memory(tmp_path) == HostMemory(3 * GIB, 8 * GIB)


def test_a_container_of_version_1_that_does_not_see_its_own_path(tmp_path: Path) -> None:
    machine(tmp_path, "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n")
    group(tmp_path / "sys/fs/cgroup/memory", _V1, 4 * GIB, 2 * GIB, GIB)
    assert host_memory(tmp_path) == HostMemory(3 * GIB, 4 * GIB)


def test_no_limit_in_version_1(tmp_path: Path) -> None:
    machine(tmp_path, "4:memory:/\n")
    group(tmp_path / "sys/fs/cgroup/memory", _V1, 9223372036854771712, GIB)
    assert host_memory(tmp_path) == HostMemory(40 * GIB, 64 * GIB)


def test_more_used_than_allowed_is_nothing_free(tmp_path: Path) -> None:
    machine(tmp_path, "0::/\n")
    group(tmp_path / "sys/fs/cgroup", _V2, GIB, 2 * GIB)
    assert host_memory(tmp_path).available == 0


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = host_memory(tmp_path)
    assert 0 < found.available <= found.total
