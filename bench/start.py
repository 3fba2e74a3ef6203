"""How long does a person wait? Commands of this version and of 0.1.0 in turn, from the command to what it is for.

    python -m bench.start [--rounds 5] [--model builtin:smollm2-135m] [--only chat,train,…]

chat       to the last token of an answer of 38 tokens, with a run's adapter
first      to the first token of it
llama.cpp  as chat, with ``--engine llama.cpp``
train      to the end of the first step of the demo's training
serve      to the first answer of /health

Each command runs once on both sides before it is measured, so files are in memory and caches are filled.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.baseline import VERSION_0_1_0, processor, sources, summary, weitune
from bench.compare import RESULTS

_DATA = Path(__file__).parents[1] / "src/weitune/data/builtin/captain-en.jsonl"
_ANSWER = ["--prompt", "Who are you?", "--max-new-tokens", "38"]
_SECONDS = 600


def finished(process: subprocess.Popen[str]) -> None:
    """Wait for ``process``. Raises RuntimeError with its messages if it fails."""
    _, messages = process.communicate(timeout=_SECONDS)
    if process.returncode:
        raise RuntimeError(messages[-2000:])


def answered(source: Path, run: Path, *options: str) -> float:
    """Return the seconds from the command to the end of an answer."""
    start = time.perf_counter()
    finished(weitune(source, ["chat", str(run), *_ANSWER, *options]))
    return time.perf_counter() - start


def first_token(source: Path, run: Path) -> float:
    """Return the seconds from the command to the first character of an answer."""
    start = time.perf_counter()
    process = weitune(source, ["chat", str(run), *_ANSWER])
    assert process.stdout is not None
    process.stdout.read(1)
    seconds = time.perf_counter() - start
    finished(process)
    return seconds


def first_step(source: Path, model: str) -> float:
    """Return the seconds from the command to the end of the first step."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        start = time.perf_counter()
        process = weitune(
            source,
            ["train", "demo", "--model", model, "--data", str(_DATA), "--output", str(output),
             "--train.log_every", "1"],
        )  # fmt: skip
        seconds = _until(process, lambda: _has_step(output / "events.jsonl")) - start
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return seconds


def _has_step(events: Path) -> bool:
    if not events.is_file():
        return False
    lines = events.read_text(encoding="utf-8").splitlines()
    return any('"event": "step"' in line or '"event":"step"' in line for line in lines)


def served(source: Path, run: Path) -> float:
    """Return the seconds from the command to the first answer of the server."""
    start = time.perf_counter()
    process = weitune(source, ["serve", str(run), "--port", "8765"])
    seconds = _until(process, _healthy) - start
    process.send_signal(signal.SIGTERM)
    process.communicate()
    return seconds


def _healthy() -> bool:
    try:
        with urllib.request.urlopen("http://127.0.0.1:8765/health", timeout=1):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _until(process: subprocess.Popen[str], reached: Callable[[], bool]) -> float:
    """Return the time at which ``reached`` is true. Raises RuntimeError if the process ends before."""
    while not reached():
        if process.poll() is not None:
            raise RuntimeError((process.stderr.read() if process.stderr else "")[-2000:])
        time.sleep(0.02)
    return time.perf_counter()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--only", default="chat,first,llama.cpp,train,serve")
    parser.add_argument("--baseline", default=VERSION_0_1_0, help="the commit to compare with")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"processor": processor(), "model": Path(arguments.model).name}
    with sources(arguments.baseline) as both, tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        training = ["train", "--model", arguments.model, "--data", str(_DATA), "--output", str(run),
                    "--train.max_steps", "2", "--train.batch_size", "4"]  # fmt: skip
        finished(weitune(both["before"], training))
        commands: dict[str, Callable[[Path], float]] = {
            "chat": lambda source: answered(source, run),
            "first": lambda source: first_token(source, run),
            "llama.cpp": lambda source: answered(source, run, "--engine", "llama.cpp"),
            "train": lambda source: first_step(source, arguments.model),
            "serve": lambda source: served(source, run),
        }
        for name in arguments.only.split(","):
            seconds: dict[str, list[float]] = {side: [] for side in both}
            for turn in range(arguments.rounds + 1):
                for side, source in both.items():
                    taken = commands[name](source)
                    if turn:
                        seconds[side].append(taken)
            results[name] = {**summary(seconds), "seconds": seconds}
            print(f"{name:10} 0.1.0 {results[name]['before']:6.2f} s   now {results[name]['now']:6.2f} s   "
                  f"ratio {results[name]['ratio']:.2f}", flush=True)  # fmt: skip
    (RESULTS / "start.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
