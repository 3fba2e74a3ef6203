"""Is anything ever lost? The long forms of tests/faults: real processes, a real full disk, twenty random instants each.

    python -m bench.faults [--seed N] [--only kills,stops,…] [--cost-model smollm2-135m]

    kills       SIGKILL at 20 random instants, the start-up and saving among them; resumed: the same adapter, to the bit
    stops       SIGTERM at 20 random instants: exit 130 with a valid checkpoint, and how long that takes
    calls       SIGKILL by strace at every file-system call of a save: a good checkpoint loads
    full_disk   a tmpfs that is full at 10 offsets of a save: the checkpoint before intact, then written after all
    damage      every file of a checkpoint cut, flipped and missing, three ways each: named, and an older one used
    histories   1,000 random histories of save, rotate, rot and crash
    searches    SIGKILL at 10 random instants of `weitune tune`; gone on with: the same trials and the same best.yaml
    preferences SIGKILL at 20 random instants of runs on pairs, the measuring of the reference among them: the same bits
    not_finite  20 bad losses, gradients and weights: stopped within the step, the true value told
    same        the same recipe twice; with two threads; with another split of a step
    cost        what a checkpoint costs training, on a real model

Every check prints how many of how many held; all is kept in bench/results/faults.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import fault_files, fault_preferences, fault_searches
from tests.faults.processes import Process, Starter, steps_done
from tests.faults.runs import STEPS, Inputs, digest, make_inputs
from weitune.run.checkpoint import fault_of, newest_good

RESULTS = Path(__file__).parent / "results"
# a step of several micro-batches, so that most instants are in the middle of an accumulation
KEYS: dict[str, Any] = {"train.epochs": 6, "train.micro_tokens": 60, "train.checkpoint_every": 5}
LONG = 3 * STEPS


class Scene:
    """A tiny model, a run that nothing disturbed, and ways to start others."""

    def __init__(self, scratch: Path, seed: int) -> None:
        """Train the undisturbed run; all draws come from ``seed``."""
        self.scratch, self.draw, self.seed = scratch, random.Random(seed), seed
        self.inputs: Inputs = make_inputs(scratch / "inputs")
        self.starter = Starter(XDG_CACHE_HOME=str(scratch / "cache"))
        self.expected = scratch / "undisturbed"
        began = time.perf_counter()
        process = self.start(self.expected)
        assert process.wait() == 0, process.said
        self.seconds = time.perf_counter() - began
        """What a run takes whose libraries are loaded already."""

    def arguments(self, run: Path) -> list[str]:
        """Return the command line that begins the run, or goes on with it if its folder is there."""
        if (run / "recipe.yaml").exists():
            return ["train", "--resume", str(run), "--device", "cpu"]
        tree = {key: value[0] if isinstance(value, list) else value for key, value in self.inputs.tree(run).items()}
        return ["train", *(f"--{key}={value}" for key, value in {**tree, **KEYS}.items()), "--device", "cpu"]

    def start(self, run: Path) -> Process:
        """Start a process that has the libraries loaded already."""
        return self.starter.start(self.arguments(run), run.with_suffix(".log"))

    def start_cold(self, run: Path) -> subprocess.Popen[bytes]:
        """Start a process of its own, as a user does."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(self.scratch / "cold-cache")}
        with run.with_suffix(".log").open("ab") as log:
            command = [sys.executable, "-m", "weitune", *self.arguments(run)]
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def finish(self, run: Path) -> bool:
        """Go on to the end; return whether the result is that of the undisturbed run."""
        process = self.start(run)
        assert process.wait() == 0, process.said
        return digest(run / "adapter") == digest(self.expected / "adapter")


def instant(scene: Scene, run: Path, process: Process, kind: str) -> str:
    """Wait for a random instant of ``kind`` and return its description."""
    draw = scene.draw
    if kind == "start":
        pause = draw.uniform(0.05, scene.seconds / 2)
        time.sleep(pause)
        return f"after {pause:.2f} s"
    if kind == "save":
        number = 5 * draw.randint(1, LONG // 5 - 1)
        partial, final = run / f".checkpoint-{number}.partial", run / f"checkpoint-{number}"
        process.until(lambda: partial.exists() or final.exists(), pause=0.0005)
        pause = draw.uniform(0, 0.008)
        time.sleep(pause)
        return f"{1000 * pause:.1f} ms into checkpoint {number}"
    step = draw.randint(1, LONG - 2)
    process.until(lambda: steps_done(run) >= step, pause=0.001)
    pause = draw.uniform(0, 0.05)
    time.sleep(pause)
    return f"{1000 * pause:.0f} ms after step {step}"


def kills(scene: Scene) -> dict[str, Any]:
    """SIGKILL: four at any instant of a process of its own, four while loading, eight in training, four in saving."""
    outcomes = []
    began = time.perf_counter()
    assert scene.start_cold(scene.scratch / "cold").wait() == 0
    whole = time.perf_counter() - began
    assert digest(scene.scratch / "cold" / "adapter") == digest(scene.expected / "adapter")
    for number, kind in enumerate(["cold"] * 4 + ["start"] * 4 + ["step"] * 8 + ["save"] * 4):
        run = scene.scratch / f"killed-{number}"
        if kind == "cold":
            cold = scene.start_cold(run)
            pause = scene.draw.uniform(0.1, whole)
            time.sleep(pause)
            cold.send_signal(signal.SIGKILL)
            code, when = cold.wait(), f"cold, after {pause:.2f} s"
        else:
            process = scene.start(run)
            when = instant(scene, run, process, kind)
            process.send(signal.SIGKILL)
            code = process.wait()
        there = run.exists()
        found, faulty = newest_good(run) if there else (None, [])
        same = scene.finish(run)
        outcomes.append({"when": when, "code": code, "folder": there, "checkpoint": found.step if found else 0,
                         "faulty": len(faulty), "same_bits": same})  # fmt: skip
        print(f"  {outcomes[-1]}")
    return {"passed": sum(o["same_bits"] and not o["faulty"] for o in outcomes), "of": 20, "outcomes": outcomes}


def stops(scene: Scene) -> dict[str, Any]:
    """SIGTERM at random instants after the first step."""
    outcomes = []
    for number, kind in enumerate(["step"] * 14 + ["save"] * 6):
        run = scene.scratch / f"stopped-{number}"
        process = scene.start(run)
        when = instant(scene, run, process, kind)
        began = time.perf_counter()
        process.send(signal.SIGTERM)
        code = process.wait()
        seconds = time.perf_counter() - began
        found, _ = newest_good(run)
        valid = found is not None and found.step == steps_done(run) and not fault_of(found)
        ended_well = code == 130 or (code == 0 and steps_done(run) == LONG)  # the last step may have been done by then
        same = scene.finish(run)
        outcomes.append({"when": when, "code": code, "seconds": seconds, "valid": valid, "same_bits": same})
        assert ended_well, process.said
        print(f"  {outcomes[-1]}")
    passed = sum(o["valid"] and o["same_bits"] and o["seconds"] < 30 for o in outcomes)
    return {"passed": passed, "of": 20, "longest_seconds": max(o["seconds"] for o in outcomes), "outcomes": outcomes}


CHECKS: dict[str, Callable[[Scene], dict[str, Any]]] = {
    "kills": kills, "stops": stops,
    "calls": lambda scene: fault_files.calls(scene.scratch),
    "full_disk": lambda scene: fault_files.full_disk(scene.scratch, scene.inputs),
    "damage": lambda scene: fault_files.damage(scene.scratch, scene.inputs, scene.seed),
    "histories": lambda scene: fault_files.histories(scene.scratch, scene.seed),
    "searches": lambda scene: fault_searches.searches(scene.scratch, scene.inputs, scene.starter, scene.draw),
    "preferences": lambda scene: fault_preferences.preferences(scene.scratch, scene.draw),
    "not_finite": lambda scene: fault_files.not_finite(scene.scratch, scene.inputs, scene.seed),
    "same": lambda scene: fault_files.same(scene.scratch, scene.inputs),
}  # fmt: skip


def main() -> None:
    """Run the checks, print what held, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=20260131)
    parser.add_argument("--only", default=",".join([*CHECKS, "cost"]), help="checks, separated by commas")
    parser.add_argument("--cost-model", default="smollm2-135m")
    arguments = parser.parse_args()
    path = RESULTS / "faults.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    chosen = arguments.only.split(",")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
        scene = Scene(scratch, arguments.seed) if set(chosen) - {"cost"} else None
        for name in chosen:
            print(f"{name}, seed {arguments.seed}:", flush=True)
            began = time.perf_counter()
            result = (
                CHECKS[name](scene) if scene and name != "cost" else fault_files.cost(scratch, arguments.cost_model)
            )
            result |= {"seed": arguments.seed, "took_seconds": round(time.perf_counter() - began, 1)}
            kept[name] = {**result, "platform": platform.platform(), "processors": os.cpu_count()}
            shown = {key: value for key, value in result.items() if key != "outcomes"}
            print(f"{name}: {shown}", flush=True)
            RESULTS.mkdir(exist_ok=True)
            path.write_text(json.dumps(kept, indent=2) + "\n")
        if scene is not None:
            scene.starter.close()
    if any(kept[name].get("passed") != kept[name].get("of") for name in chosen):
        sys.exit("something was lost")


if __name__ == "__main__":
    main()
