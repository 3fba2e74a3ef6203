"""Which learning rate is best, by model and number of steps? What `train.learning_rate: auto` was fitted on.

    python -m bench.first_rate --model smollm2-135m --data builtin:captain-en --steps 15 30 60 --output runs/rates

For each number of steps, rates a factor of two apart around a guess are tried, and further ones for as long as the
best is the highest or the lowest; every trial is a whole run of a fresh adapter whose rate falls to 0, as those of
`weitune tune` are. The optimum is that of the parabola through the best rate and its two neighbours, over the
logarithm of the rate. Trials that are done are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.compare import model_folder
from bench.examples import SHARED
from weitune.recipe.load import build_recipe
from weitune.training.build import load_base
from weitune.training.inputs import collect_inputs
from weitune.training.reporter import Reporter
from weitune.training.signals import StopRequest
from weitune.tune.search import Candidate, Trial
from weitune.tune.trials import Trials


def main() -> None:
    """Make the trials that are not made yet, and print the best rate for each number of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name of a test model, or a folder")
    parser.add_argument("--data", required=True, help="a file of the shared data, or any that train reads")
    parser.add_argument("--rows", type=int, help="only so many rows, from the first")
    parser.add_argument("--validation", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=32.0)
    parser.add_argument("--whole", action="store_true", help="train the whole model, without an adapter")
    parser.add_argument("--steps", type=int, nargs="+", required=True)
    parser.add_argument("--around", type=float, default=1e-3, help="the first rate to try")
    parser.add_argument("--output", type=Path, required=True, help="folder for the figures")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    name = (
        f"{Path(arguments.model).name}-{Path(arguments.data.removeprefix('builtin:')).stem}-{arguments.rows or 'all'}"
    )
    changed = "-whole" if arguments.whole else f"-alpha-{arguments.alpha:g}" if arguments.alpha != 32 else ""
    path = arguments.output / f"{name}{changed}.jsonl"
    done = read(path)
    trials = make_trials(arguments, path)
    rate = arguments.around
    for steps in arguments.steps:
        losses = {line["rate"]: line["loss"] for line in done if line["steps"] == steps}
        while (tried := next_rate(losses, rate)) is not None:
            losses[tried] = try_rate(trials, arguments, path, steps, tried)
        rate = min(losses, key=losses.__getitem__)
        print(f"{name}  {steps:4d} steps  best {best(losses):.2e}  {min(losses.values()):.4f}", flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def make_trials(arguments: argparse.Namespace, path: Path) -> Trials:
    """Load the model and the data."""
    shared = SHARED / arguments.data
    data = shared if shared.exists() else arguments.data
    if arguments.rows:
        rows = json.loads(Path(data).read_text(encoding="utf-8"))[: arguments.rows]
        data = path.with_suffix(".rows.json")
        data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    recipe = build_recipe(
        {
            "model": arguments.model if Path(arguments.model).is_dir() else model_folder(arguments.model),
            "data": str(data),
            "validation": arguments.validation,
            "train": {"batch_size": arguments.batch_size},
            "lora": "none" if arguments.whole else {"alpha": arguments.alpha},
        }
    )
    return Trials(load_base(recipe, "cpu"), collect_inputs(recipe, Reporter()))


def next_rate(losses: dict[float, float], first: float) -> float | None:
    """Return the rate to try next: the neighbours of the best, until it has both."""
    if not losses:
        return first
    lowest = min(losses, key=losses.__getitem__)
    return next((rate for rate in (2 * lowest, lowest / 2) if not near(rate, losses)), None)


def near(rate: float, losses: dict[float, float]) -> bool:
    return any(math.isclose(rate, other, rel_tol=0.01) for other in losses)


def try_rate(trials: Trials, arguments: argparse.Namespace, path: Path, steps: int, rate: float) -> float:
    """Make a trial, and keep what it came to."""
    candidate = Candidate(rate, arguments.batch_size, 1, None if arguments.whole else 8)
    outcome = trials.run(Trial(1, candidate, steps, trials.rows, rate), StopRequest())
    assert outcome is not None
    line = {"rate": rate, "steps": steps, "loss": outcome.loss, "seconds": outcome.seconds, **asdict(candidate)}
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"  {steps:4d} steps  {rate:.2e}  {outcome.loss:.4f}  {outcome.seconds:.0f} s", flush=True)
    return outcome.loss


def best(losses: dict[float, float]) -> float:
    """Return the rate at the lowest point of the parabola through the best rate and its neighbours."""
    middle = min(losses, key=losses.__getitem__)
    below, above = (min(losses, key=lambda rate: abs(math.log(rate / middle / factor))) for factor in (0.5, 2.0))
    left, low, right = losses[below], losses[middle], losses[above]
    if not all(map(math.isfinite, (left, low, right))) or left + right == 2 * low:
        return middle
    return middle * 2 ** (0.5 * (left - right) / (left - 2 * low + right))


if __name__ == "__main__":
    main()
