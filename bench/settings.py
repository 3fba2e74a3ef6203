"""Which settings learn as much in less time? Each trains from the same start and is judged by the same held-out rows.

    python -m bench.settings --model qwen2.5-0.5b --data huanhuan.json --output runs/settings [--seeds 42 43]

Runs come one after another, each in a process of its own (`weitune train`). Started again with the same arguments, the
script goes on where it was: finished runs are read, one that was interrupted is resumed. Every setting is also tried
with half the steps, its schedule ending there. A setting is as good as the default, the tutorial's, at the first
evaluation whose loss is at or below the default's last one of the same seed; the seconds until then are those of the
steps alone, without loading, evaluations and checkpoints. Steps of all settings cost the same, so where the machine is
busy, compare steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from bench.compare import RESULTS, model_folder
from bench.examples import SHARED, SYSTEM
from weitune.run.events import read_events

DEFAULT = "default"
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    DEFAULT: {},
    "lr-2e-4": {"train": {"learning_rate": 2e-4}},
    "lr-5e-4": {"train": {"learning_rate": 5e-4}},
    "lr-5e-4-cosine": {"train": {"learning_rate": 5e-4, "schedule": "cosine", "warmup_ratio": 0.03}},
    "lora-plus-8": {"train": {"learning_rate": 2e-4}, "lora": {"plus_ratio": 8}},
}
HALF = "-half"
NAMES = [*SETTINGS, *(name + HALF for name in SETTINGS)]


def main() -> int:
    """Train what is not trained yet, and print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-0.5b", help="name of a test model, or a folder")
    parser.add_argument("--data", default="huanhuan.json", help="a file of the shared data, or any that train reads")
    parser.add_argument("--system", default=SYSTEM)
    parser.add_argument("--validation", default=0.06, type=float)
    parser.add_argument("--steps", type=int, help="of a whole run  [default: three epochs]")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--evaluate-every", type=int, default=20)
    parser.add_argument("--settings", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    steps = arguments.steps or planned_steps(arguments)
    names = list(dict.fromkeys([DEFAULT, *arguments.settings]))
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for name in names:
            run = arguments.output / f"{name}-{seed}"
            train(run, recipe(arguments, name, seed, steps))
            goal = next((row["final_loss"] for row in rows if (row["setting"], row["seed"]) == (DEFAULT, seed)), None)
            rows.append(row := {"setting": name, "seed": seed, **figures(run, goal)})
            print(line(row), flush=True)
            keep(arguments, rows)
    return 0


def recipe(arguments: argparse.Namespace, name: str, seed: int, steps: int) -> dict[str, Any]:
    """Return the recipe of a setting: the tutorial's, but for what it changes."""
    changed = SETTINGS[name.removesuffix(HALF)]
    shared = SHARED / arguments.data
    return {
        "model": arguments.model if Path(arguments.model).is_dir() else model_folder(arguments.model),
        "data": str(shared if shared.exists() else arguments.data),
        "system": arguments.system,
        "validation": arguments.validation,
        "lora": changed.get("lora", {}),
        "train": {
            "batch_size": arguments.batch_size,
            "epochs": 1_000 if arguments.steps else 3,  # more than enough for the steps that were asked for
            "max_steps": max(1, steps // 2) if name.endswith(HALF) else steps,
            "seed": seed,
            "evaluate_every": arguments.evaluate_every,
            "keep_checkpoints": 1,
            "sample_prompts": [],
            **changed.get("train", {}),
        },
    }


def planned_steps(arguments: argparse.Namespace) -> int:
    """Return the steps of three epochs, as `weitune plan` counts them."""
    path = arguments.output / "plan.yaml"
    tree = recipe(arguments, DEFAULT, 42, 1)
    del tree["train"]["max_steps"]
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "weitune", "plan", str(path), "--json"], stdout=subprocess.PIPE, text=True, check=False
    )  # 2 says that it will not fit, and the steps all the same
    return int(json.loads(done.stdout)["steps"])


def train(run: Path, tree: dict[str, Any]) -> None:
    """Train, or go on with, the run in the folder ``run``. Ends the script if training does not come to its end."""
    path = run.with_suffix(".yaml")
    text = yaml.safe_dump({**tree, "output": str(run)}, allow_unicode=True)
    if (run / "recipe.yaml").exists():
        if path.read_text(encoding="utf-8") != text:
            sys.exit(f"{run} was begun with other arguments: give another --output")
        if is_complete(run, tree["train"]["max_steps"]):
            return
        command = ["--resume", str(run)]
    else:
        path.write_text(text, encoding="utf-8")
        command = [str(path)]
    process = subprocess.Popen([sys.executable, "-m", "weitune", "train", *command])
    try:
        status = process.wait()
    except KeyboardInterrupt:
        status = process.wait()  # it was interrupted too, and writes a checkpoint
    if status:
        sys.exit(status)


def is_complete(run: Path, steps: int) -> bool:
    """Return whether the run has been evaluated after its last step, and published."""
    evaluated = {event["step"] for event in read_events(run) if event["event"] == "validation"}
    return steps in evaluated and (run / "adapter").is_dir()


def figures(run: Path, goal: float | None) -> dict[str, Any]:
    """Return what a run came to, and when it was as good as ``goal``; without one, its own end is the goal."""
    events = list(read_events(run))
    seconds, passed = {0: 0.0}, 0.0
    for event in events:
        if event["event"] == "step":
            passed += event["step_seconds"]
            seconds[event["step"]] = passed
    losses = {event["step"]: event["loss"] for event in events if event["event"] == "validation"}
    final = losses[max(losses)]
    first = next((step for step in sorted(losses) if losses[step] <= (final if goal is None else goal)), None)
    return {
        "steps": max(losses),
        "final_loss": final,
        "lowest_loss": min(losses.values()),
        "seconds": passed,
        "steps_to_goal": first,
        "seconds_to_goal": None if first is None else seconds[first],
        "losses": losses,
    }


def line(row: dict[str, Any]) -> str:
    reached = "never as good as the default's end"
    if row["steps_to_goal"] is not None:
        reached = f"as good as the default's end after {row['steps_to_goal']:4d} steps, {row['seconds_to_goal']:7.0f} s"
    return (
        f"{row['setting']:20s} seed {row['seed']:<6d} {row['steps']:4d} steps {row['seconds']:7.0f} s  "
        f"loss {row['final_loss']:.4f} (lowest {row['lowest_loss']:.4f})  {reached}"
    )


def keep(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write the table among the results."""
    names = {"model": Path(arguments.model).name, "data": Path(arguments.data).name.removeprefix("builtin:")}
    asked = {key: getattr(arguments, key) for key in ("validation", "batch_size", "evaluate_every")}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"settings-{names['model']}-{Path(names['data']).stem}.json"
    path.write_text(json.dumps({**names, **asked, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
