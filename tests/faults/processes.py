"""Real ``weitune`` processes, started in no time by :mod:`.server`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.limits import HANG_SECONDS
from weitune.run.events import read_events


class Starter:
    """Starts and awaits processes."""

    def __init__(self, **environment: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def start(self, arguments: list[str], output: Path) -> Process:
        return Process(self, int(self._ask({"arguments": arguments, "output": str(output)})), output)

    def wait(self, pid: int) -> int:
        return int(self._ask({"wait": pid}))

    def close(self) -> None:
        self._server.kill()
        self._server.wait()

    def _ask(self, order: dict[str, Any]) -> str:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the server has ended"
        return line.strip()


@dataclass
class Process:
    """One ``weitune`` on its way."""

    starter: Starter
    pid: int
    output: Path

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Return the exit code."""
        return self.starter.wait(self.pid)

    @property
    def said(self) -> str:
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""

    def until(self, condition: Callable[[], object], pause: float = 0.002) -> None:
        """Look again and again until ``condition`` holds. Fails if the process ends before, or after HANG_SECONDS."""
        end = time.monotonic() + HANG_SECONDS
        while not condition():
            assert self._alive() or condition(), f"it ended too early:\n{self.said}"
            if time.monotonic() > end:
                self.send(signal.SIGUSR2)
                time.sleep(1)
                raise AssertionError(f"it takes too long:\n{self.said}")
            time.sleep(pause)

    def _alive(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return not Path("/proc").exists()


def steps_done(run: Path) -> int:
    """Return the newest step in the run's events."""
    return max((event["step"] for event in read_events(run) if event["event"] == "step"), default=0)
