"""The source of version 0.1.0 beside this one, for benchmarks that run both in turn."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

VERSION_0_1_0 = "70fcc34"
"""The commit of version 0.1.0."""
_HERE = Path(__file__).parents[1]


@contextmanager
def sources(revision: str = VERSION_0_1_0) -> Iterator[dict[str, Path]]:
    """Yield the folders of both sources: ``before`` is checked out for the time of the block, ``now`` is this one."""
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        _git("worktree", "add", "--quiet", "--detach", str(before), revision)
        try:
            yield {"before": before, "now": _HERE}
        finally:
            _git("worktree", "remove", "--force", str(before))


def _git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(_HERE), *arguments], check=True, capture_output=True)


def environment(source: Path) -> dict[str, str]:
    """Return the environment of a process that imports weitune from ``source``."""
    return {**os.environ, "PYTHONPATH": str(source / "src")}


def weitune(source: Path, arguments: Sequence[str], **more: str) -> subprocess.Popen[str]:
    """Start the command line of ``source``, with ``more`` in its environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "weitune", *arguments],
        env={**environment(source), **more},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def summary(measured: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the medians of both sides and the ratio of now to before."""
    before, now = (statistics.median(measured[side]) for side in ("before", "now"))
    return {"before": before, "now": now, "ratio": now / before}


def processor() -> str:
    """Return the processor's name."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")] if Path("/proc/cpuinfo").is_file() else []  # fmt: skip
    return names[0] if names else "unknown processor"
