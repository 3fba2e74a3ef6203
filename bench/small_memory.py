"""How little memory does training need? Each way to store the base in turn, a process each.

    python -m bench.small_memory [--model qwen2.5-0.5b] [--storage fp32 bf16 int8 nf4] [--recompute block]
    python -m bench.small_memory --shape-7b --batch-size 4 --steps 1     # Qwen2.5-7B's shape, random weights in 4 bits

Two peaks: *own* is the memory that nobody else could use (`RssAnon`, looked at every 20 ms); *resident* adds the pages
of files, such as the model while it is read, which the system takes back when it needs them (`ru_maxrss`). Losses
are of the same rows in the same order.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from bench.compare import RESULTS, model_folder, run_apart
from bench.examples import huanhuan
from bench.gpu_7b import SHAPE
from bench.random_weights import random_nf4
from bench.side import read_examples, write_examples
from weitune.data.schedule import Plan
from weitune.recipe.schema import Lora, Train


class OwnMemory:
    """Looks, until it is closed, how much memory this process has that is not a file's."""

    def __init__(self) -> None:
        """Begin to look."""
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.peak_bytes = max(self.peak_bytes, 1024 * kilobytes)

    def close(self) -> int:
        """Return the most that was seen, in bytes."""
        self._ended.set()
        self._thread.join()
        return self.peak_bytes


def load(job: dict[str, Any]) -> Any:
    from weitune.model.load.locate import ModelFiles
    from weitune.model.load.weights import LoadedModel, load_model

    if job["shape_7b"]:
        model = random_nf4(SHAPE)
        return LoadedModel(model, None, ModelFiles(Path(job["model"])), torch.device("cpu"), torch.float32, "nf4")
    return load_model(job["model"], precision="fp32", storage=job["storage"], device="cpu")


def side(job: dict[str, Any]) -> dict[str, Any]:
    """Train as ``job`` says, in this process, and return what it took."""
    from accelerate import Accelerator

    from bench.side import peak_bytes
    from weitune.cli.shared.terminal import quiet_libraries
    from weitune.training.build import make_loop, make_trainable

    quiet_libraries()
    own = OwnMemory()
    loaded = load(job)
    after_loading = own.peak_bytes
    examples = read_examples(job["examples"])
    train = Train(
        batch_size=job["batch_size"], micro_tokens=job["micro_tokens"], max_steps=job["steps"],
        recompute=job["recompute"],
    )  # fmt: skip
    trainable = make_trainable(loaded, Lora(dropout=0.0), seed=42, base=job["model"])
    plan = Plan(len(examples), job["batch_size"], 1, 42, job["steps"])
    loop = make_loop(trainable, train, examples, plan, accelerator=Accelerator(cpu=True))
    records: list[Any] = []

    class Watcher:
        def stepped(self, record: Any) -> bool:
            records.append(record)
            return True

        def failed(self, record: Any) -> None:
            raise RuntimeError(record)

    loop.run(0, Watcher())
    return {
        **{key: value for key, value in job.items() if key not in {"model", "examples"}},
        "plain_blocks": trainable.capabilities.plain_blocks,
        "own_bytes_loading": after_loading,
        "own_bytes": own.close(),
        "resident_bytes": peak_bytes(loaded.device),
        "step_seconds": [record.step_seconds for record in records],
        "losses": [record.loss for record in records],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-0.5b", help="name of a test model, or a folder")
    parser.add_argument("--storage", nargs="+", default=["fp32", "bf16", "int8", "nf4"])
    parser.add_argument("--recompute", nargs="+", default=["block"])
    parser.add_argument("--micro-tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--shape-7b", action="store_true", help="random weights in nf4 in place of a model")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(side(json.loads(Path(arguments.job).read_text()))))
        return
    if arguments.shape_7b:
        arguments.storage = ["nf4"]
    model = arguments.model if Path(arguments.model).is_dir() else model_folder(arguments.model)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "examples.jsonl"
        write_examples(path, huanhuan(model))
        for storage in arguments.storage:
            for recompute in arguments.recompute:
                job = {
                    "model": model, "examples": str(path), "storage": storage, "recompute": recompute,
                    "micro_tokens": arguments.micro_tokens, "batch_size": arguments.batch_size,
                    "steps": arguments.steps, "shape_7b": arguments.shape_7b,
                }  # fmt: skip
                began = time.perf_counter()
                results.append(found := run_apart(["bench.small_memory", "--job"], job))
                print(
                    f"{storage:5s} {recompute:13s} own {found['own_bytes'] / 1e9:5.2f} GB (loading "
                    f"{found['own_bytes_loading'] / 1e9:5.2f})  resident {found['resident_bytes'] / 1e9:5.2f} GB  "
                    f"last step {found['step_seconds'][-1]:7.1f} s  "
                    f"last loss {found['losses'][-1]:.4f}  in all {time.perf_counter() - began:.0f} s",
                    flush=True,
                )
    RESULTS.mkdir(exist_ok=True)
    name = "7b-shape" if arguments.shape_7b else Path(model).name
    name = f"small_memory-{name}-{'-'.join(arguments.storage)}.json"
    (RESULTS / name).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
