"""Run both sides of a comparison in turn, each in a process of its own, and report medians and their ratio.

The machine may be shared and drift, so the sides take turns, and how fast it multiplies matrices just then is measured
before every side and after every step of weitune. Steps differ in length, so only those count that both sides do, all
but the first: examples and tokens over the time that these took, of the median round. Where the first steps of a side
are not like the later ones, ``settled`` takes the median step of each side instead.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.baseline import processor
from bench.side import EPOCHS, peak_flops, write_examples
from weitune.data.conversation import Example
from weitune.data.schedule import Plan
from weitune.forecast.run_forecast import DTYPES

RESULTS = Path(__file__).parent / "results"
LABEL = {"weitune": "weitune", "plain": "plain recipe"}


def compare(
    examples: list[Example],
    model: str,
    *,
    rounds: int = 3,
    steps: dict[str, int] | None = None,
    settled: bool = False,
    **job: Any,
) -> dict[str, Any]:
    """Train both sides over ``examples`` in the same order and return their figures.

    ``steps`` says how many optimizer steps each side does a round; the first warms up and is not counted.
    """
    steps = steps or {"weitune": 4, "plain": 3}
    job = {"model": model, "batch_size": 16, "micro_tokens": "auto", "dropout": 0.1, "precision": "fp32", **job}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in steps}
    peaks: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "examples.jsonl"
        write_examples(path, examples)
        for _ in range(rounds):
            for side, count in steps.items():
                peaks.append(peak_flops(DTYPES[job["precision"]], job.get("device", "cpu")))
                runs[side].append(run_apart(["bench.side", side], {**job, "examples": str(path), "steps": count}))
    plan = Plan(len(examples), job["batch_size"], EPOCHS, 42, max(steps.values()))
    for key in {"model", "tokenizer"} & set(job):  # results may be published; where a model lies is nobody's business
        job[key] = Path(job[key]).name
    result: dict[str, Any] = {
        "processor": processor(), "job": job, "rounds": rounds, "peak_gflops": max(peaks) / 1e9
    }  # fmt: skip
    for side, done in runs.items():
        last = steps[side] if settled else min(steps.values())
        counted = [[examples[int(i)] for i in plan.step(step)] for step in range(1, last)]
        result[side] = _figures(done, counted, settled)
    result["ratio"] = result["weitune"]["examples_per_second"] / result["plain"]["examples_per_second"]
    result["memory_ratio"] = result["weitune"]["peak_bytes"] / result["plain"]["peak_bytes"]
    return result


def run_apart(module: list[str], job: dict[str, Any]) -> dict[str, Any]:
    """Run ``python -m`` ``module`` with the file of ``job`` as last argument and return the JSON of its last line."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "job.json"
        spec.write_text(json.dumps(job))
        done = subprocess.run(
            [sys.executable, "-m", *module, str(spec)], capture_output=True, text=True, check=False
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _figures(runs: list[dict[str, Any]], counted: list[list[Example]], settled: bool) -> dict[str, Any]:
    """Return the figures of one side; ``counted`` are the examples of its second step and of those after it."""
    seconds = [run["seconds"][1 : len(counted) + 1] for run in runs]
    sizes = [(len(batch), sum(len(e.input_ids) for e in batch)) for batch in counted]
    if settled:
        pairs = [(size, each) for run in seconds for size, each in zip(sizes, run, strict=True)]
        rates = [statistics.median(size[k] / each for size, each in pairs) for k in range(2)]
    else:
        rates = [sum(size[k] for size in sizes) / statistics.median(map(sum, seconds)) for k in range(2)]
    return {
        "examples_per_second": rates[0],
        "useful_tokens_per_second": rates[1],
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "seconds": [run["seconds"] for run in runs],
        "peak_flops": [run.get("peak_flops", []) for run in runs],
        "losses": runs[0]["losses"],
        **{key: runs[0][key] for key in ("plain_blocks", "shares_rows") if key in runs[0]},
    }


def report(name: str, result: dict[str, Any]) -> None:
    """Print the figures as a table and keep them in ``bench/results``."""
    print(
        f"\n{name}   ({result['processor']}; {result['rounds']} rounds in turn, "
        f"matrix products {result['peak_gflops']:.0f} GFLOP/s)"
    )
    for side, label in LABEL.items():
        figures = result[side]
        print(
            f"  {label:14s} {figures['examples_per_second']:7.2f} examples/s  "
            f"{figures['useful_tokens_per_second']:8.0f} tokens/s  {figures['peak_bytes'] / 1e9:5.2f} GB"
        )
    print(f"  ratio          {result['ratio']:7.2f} times the speed, {result['memory_ratio']:.2f} of the memory")
    if "needed_gflop" in result:
        print(
            f"  needed         {result['needed_gflop']:.0f} GFLOP an example: {result['share_of_peak']:.1%} of what "
            "matrix products reached between the steps"
        )
    if "packed_gflops" in result:
        print(
            f"  packed         {result['packed_gflops']:.0f} GFLOP/s with packed matrices of the model's shapes: "
            f"{result['share_of_packed']:.1%} of that"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def model_folder(name: str) -> str:
    """Return the folder of a test model that ``build_test_models.py`` made."""
    folder = Path(os.environ.get("WEITUNE_TEST_MODELS", Path.home() / ".cache/weitune/test-models")) / name
    if not folder.is_dir():
        sys.exit(f"{folder} is not there; build it with build_test_models.py {name} {folder.parent}")
    return str(folder)
