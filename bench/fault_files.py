"""The checks of :mod:`bench.faults` that need no second process of weitune."""

from __future__ import annotations

import collections
import contextlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.damage import cut, flip, lose
from tests.faults.history import live
from tests.faults.injection import bad_gradient, bad_loss, bad_weight, inject
from tests.faults.runs import EVERY, STEPS, Inputs, Listener, digest
from tests.faults.small import is_intact, save
from weitune.errors import Interrupted, NonFiniteError
from weitune.model.file_names import ADAPTER_FILES
from weitune.run.checkpoint import newest_good
from weitune.run.events import read_events
from weitune.run.names import MANIFEST, OPTIMIZER, STATE
from weitune.training.run import resume, train
from weitune.training.signals import StopRequest

_ONE_SAVE = """
import sys
from pathlib import Path
from tests.faults.small import save
from weitune.run.rotation import rotate
save(Path(sys.argv[1]), 4)
rotate(Path(sys.argv[1]), 2)
"""
_CALLS = "mkdir,openat,write,close,fsync,rename,unlink,unlinkat,rmdir"


def calls(scratch: Path) -> dict[str, Any]:
    """Kill a save with strace at each of its calls: the counts are those of a save that nothing disturbed."""
    if shutil.which("strace") is None:
        return {"passed": 0, "of": 0, "why": "there is no strace here"}

    def saved(run: Path, *options: str) -> int:
        run.mkdir()
        for step in (1, 2, 3):
            save(run, step)
        log = ["-f", "-qq", "-e", f"trace={_CALLS}", "-o", str(run.with_suffix(".trace")), *options]
        return subprocess.run(["strace", *log, sys.executable, "-c", _ONE_SAVE, str(run)], check=False).returncode

    assert saved(scratch / "whole") == 0
    before: collections.Counter[str] = collections.Counter()
    during: collections.Counter[str] = collections.Counter()
    for line in (scratch / "whole.trace").read_text().splitlines():
        found = re.match(r"\d+\s+(\w+)\(", line)
        if found:
            if "checkpoint-4.partial" in line or during:
                during[found[1]] += 1
            else:
                before[found[1]] += 1
    passed = total = 0
    for name, count in during.items():
        for number in range(before[name] + 1, before[name] + count + 1):
            run = scratch / f"{name}-{number}"
            code = saved(run, "-e", f"inject={name}:signal=KILL:when={number}")
            checkpoint, faulty = newest_good(run)
            total += 1
            good = is_intact(checkpoint) and checkpoint is not None and checkpoint.step in {3, 4} and not faulty
            passed += good and code != 0
            shutil.rmtree(run)
    return {"passed": passed, "of": total, "calls": dict(during)}


def full_disk(scratch: Path, inputs: Inputs) -> dict[str, Any]:
    """Train into a tmpfs of 2 MiB which a ballast fills so that a save runs out of room at one of ten offsets."""
    expected = _undisturbed(scratch, inputs)
    size = sum(path.stat().st_size for path in (expected / f"checkpoint-{STEPS}").iterdir())
    mount = scratch / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(mount)], check=True)
    outcomes = []
    try:
        for tenth in range(10):
            outcomes.append(_fill(mount, inputs, int(size * tenth / 10)))
            outcomes[-1]["same_bits"] = digest(mount / "run" / "adapter") == digest(expected / "adapter")
            shutil.rmtree(mount / "run")
            print(f"  {outcomes[-1]}", flush=True)
    finally:
        subprocess.run(["umount", str(mount)], check=True)
    passed = sum(all(o[key] for key in ("before_intact", "clear_message", "same_bits")) for o in outcomes)
    return {"passed": passed, "of": 10, "checkpoint_bytes": size, "outcomes": outcomes}


def _fill(mount: Path, inputs: Inputs, offset: int) -> dict[str, Any]:
    run, ballast = mount / "run", mount / "ballast"
    seen: dict[str, Any] = {"offset": offset, "before_intact": False, "clear_message": False}

    def fill() -> None:
        room = shutil.disk_usage(mount).free - offset - 8192  # for the events, and the folder itself
        ballast.write_bytes(b"\0" * max(0, room))

    def told(line: str) -> None:
        if "Training pauses" in line:
            checkpoint, faulty = newest_good(run)
            seen["before_intact"] = checkpoint is not None and not faulty
            seen["clear_message"] = str(run) in line and "No space left" in line and "bytes" in line
            seen["message"] = line
            ballast.unlink()

    listener = Listener(after={2 * EVERY - 1: fill}, on_line=told)
    train(inputs.recipe(run), reporter=listener, device="cpu")
    ballast.unlink(missing_ok=True)
    return seen


def damage(scratch: Path, inputs: Inputs, seed: int) -> dict[str, Any]:
    """Damage each file of a run's newest checkpoint, three ways three times, and go on."""
    expected = _undisturbed(scratch, inputs)
    stop = StopRequest()
    stopped = scratch / "stopped"
    with contextlib.suppress(Interrupted):
        train(inputs.recipe(stopped), reporter=Listener(after={6: stop.stop}), device="cpu", stop=stop)
    passed = total = 0
    for file in (*ADAPTER_FILES, OPTIMIZER, STATE, MANIFEST):
        for harm in (cut, flip, lose):
            for turn in range(3):
                run = Path(shutil.copytree(stopped, scratch / "damaged"))
                harm(run / "checkpoint-6" / file, random.Random(f"{seed} {file} {harm.__name__} {turn}"))
                listener = Listener()
                resume(run, reporter=listener, device="cpu")
                named = "checkpoint-6 is passed over" in listener.text and file in listener.text
                fallback = listener.records[0].step == EVERY + 1
                passed += named and fallback and digest(run / "adapter") == digest(expected / "adapter")
                total += 1
                shutil.rmtree(run)
    return {"passed": passed, "of": total}


def histories(scratch: Path, seed: int) -> dict[str, Any]:
    """Live 1,000 histories other than those of the tests."""
    events = passed = 0
    for number in range(1000):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            events += live(Path(folder), seed + number)
        passed += 1
    return {"passed": passed, "of": 1000, "events": events}


def not_finite(scratch: Path, inputs: Inputs, seed: int) -> dict[str, Any]:
    """Break the numbers of twenty runs."""
    draw, outcomes = random.Random(seed), []
    for number in range(20):
        kind, step = (bad_loss, bad_gradient, bad_weight)[number % 3], draw.randint(1, STEPS)
        bad = draw.choice([float("nan"), float("inf")]) if kind is not bad_weight else float("nan")
        run = scratch / f"broken-{number}"
        listener = Listener()
        with pytest.MonkeyPatch.context() as patch:
            inject(patch, kind, step, bad)
            try:
                train(inputs.recipe(run), reporter=listener, device="cpu")
                code = 0
            except NonFiniteError as error:
                code, message = error.exit_code, str(error)
        last = list(read_events(run))[-1]
        found, faulty = newest_good(run)
        held = (
            code == 3
            and f"step {step} is not finite" in message
            and "data.json" in message
            and len(listener.records) == step - 1
            and last["event"] == "not finite"
            and {"nan", "inf"} & {last["loss"], last["grad_norm"]}
            and (found.step if found else 0) == (step - 1) // EVERY * EVERY
            and not faulty
        )
        outcomes.append({"kind": kind.__name__, "step": step, "bad": str(bad), "held": bool(held)})
    return {"passed": sum(o["held"] for o in outcomes), "of": 20, "outcomes": outcomes}


def same(scratch: Path, inputs: Inputs) -> dict[str, Any]:
    """Train the same recipe again; on two threads; in other splits of a step without dropout."""
    expected = _undisturbed(scratch, inputs)
    again = train(inputs.recipe(scratch / "again"), device="cpu").path
    torch.set_num_threads(2)
    two = train(inputs.recipe(scratch / "two"), device="cpu").path
    torch.set_num_threads(1)
    splits = [
        train(
            inputs.recipe(scratch / f"split-{n}", **{"lora.dropout": 0.0, "train.micro_tokens": n}), device="cpu"
        ).path
        for n in (1, 60, 10_000)
    ]
    threads, split = (
        _difference(expected, two),
        max(_difference(splits[2], splits[0]), _difference(splits[2], splits[1])),
    )
    held = [digest(again / "adapter") == digest(expected / "adapter"), threads < 1e-5, split < 1e-5]
    return {"passed": sum(held), "of": 3, "threads_difference": threads, "split_difference": split}


def _undisturbed(scratch: Path, inputs: Inputs) -> Path:
    torch.set_num_threads(1)
    if not (scratch / "in-process").exists():
        train(inputs.recipe(scratch / "in-process"), device="cpu")
    return scratch / "in-process"


def _difference(a: Path, b: Path) -> float:
    """Return the largest relative difference of two runs' losses."""
    one, two = ([e["loss"] for e in read_events(run) if e["event"] == "step"] for run in (a, b))
    return max(abs(x - y) / abs(x) for x, y in zip(one, two, strict=True))


def cost(scratch: Path, model: str) -> dict[str, Any]:
    """Train a real model with a checkpoint every third step, and count what a checkpoint adds.

    ``paused`` is how long training stood still for one, ``slowed`` how much longer the step took beside which it was
    written, by its tokens, than the others; the share is of 100 steps, the default interval.
    """
    from bench.compare import model_folder
    from weitune.recipe.load import build_recipe

    recipe = {
        "model": model_folder(model), "data": ["builtin:captain-en"], "output": str(scratch / "cost"),
        "train.max_steps": 16, "train.checkpoint_every": 3,
    }  # fmt: skip
    torch.set_num_threads(torch.get_num_threads())
    began = time.perf_counter()
    run = train(build_recipe({}, recipe), device="cpu").path
    steps = [e for e in read_events(run) if e["event"] == "step" and e["step"] > 1]
    saves = [e for e in read_events(run) if e["event"] == "checkpoint"]
    after = {e["step"] + 1 for e in saves}
    pace = {e["step"]: e["step_seconds"] / e["computed_tokens"] for e in steps}
    beside, others = ([p for k, p in pace.items() if (k in after) == wanted] for wanted in (True, False))
    step = statistics.median(e["step_seconds"] for e in steps)
    paused = statistics.median(e["paused_seconds"] for e in saves)
    slowed = (statistics.median(beside) / statistics.median(others) - 1) * step
    share = (paused + max(0.0, slowed)) / (100 * step)
    last = run / "checkpoint-16"
    return {
        "passed": int(share < 0.01), "of": 1, "model": model, "share": share, "step_seconds": step,
        "paused_seconds": paused, "slowed_seconds": slowed, "writing_seconds": [e["seconds"] for e in saves],
        "checkpoint_bytes": sum(path.stat().st_size for path in last.iterdir()),
        "run_seconds": time.perf_counter() - began,
    }  # fmt: skip
