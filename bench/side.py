"""One side of a comparison in a process of its own: train a few steps, print one line of JSON.

    python -m bench.side weitune|plain JOB.json

The job names the model folder, the file of examples (made once, so that both sides read the same tokens), and the
recipe's numbers. Times begin after loading; the first step warms up and is not counted.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.reference import in_plan_order, make_trainer, rows_of
from weitune.data.conversation import Example, Span
from weitune.data.schedule import Plan
from weitune.forecast.run_forecast import DTYPES
from weitune.model.fast.matmul import packed_linear
from weitune.model.load.locate import ModelFiles
from weitune.model.load.weights import LoadedModel, load_model
from weitune.model.lora.adapter import attach_adapter
from weitune.model.lora.targets import find_targets
from weitune.recipe.schema import Lora, Train

SEED = 42
EPOCHS = 3
"""A job trains as many steps of so many epochs as it asks for."""


def read_examples(path: str) -> list[Example]:
    """Read what :func:`write_examples` wrote."""
    return [
        Example(tuple(row["input_ids"]), tuple(Span(*span) for span in row["spans"]))
        for row in map(json.loads, Path(path).read_text().splitlines())
    ]


def write_examples(path: Path, examples: list[Example]) -> None:
    """Write examples as JSON Lines."""
    rows = ({"input_ids": e.input_ids, "spans": [(s.start, s.stop, s.weight) for s in e.spans]} for e in examples)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(job: dict[str, Any]) -> LoadedModel:
    """Load the job's model folder, or make a model of the job's shape with random weights where it will run."""
    if "shape" not in job:
        return load_model(job["model"], precision=job["precision"], device="cpu")
    from transformers import AutoConfig, AutoModelForCausalLM

    device, dtype = torch.device(job["device"]), DTYPES[job["precision"]]
    with device:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**job["shape"]), dtype=dtype)
    model.requires_grad_(False)
    return LoadedModel(model.eval(), None, ModelFiles(Path(job["model"])), device, dtype)


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory of this process on ``device``."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """Measure matrix multiplication, in operations a second: the best of 20 on a shape of Qwen2.5-0.5B, or on a GPU on
    one of Qwen2.5-7B."""
    rows, inner, columns = (1024, 896, 4864) if device == "cpu" else (1024, 3584, 18944)
    a, b = (torch.randn(shape, dtype=dtype, device=device) for shape in ((rows, inner), (inner, columns)))
    best = 0.0
    for _ in range(20):
        wait_for(device)
        began = time.perf_counter()
        for _ in range(repeat := 1 if device == "cpu" else 20):
            torch.mm(a, b)
        wait_for(device)
        best = max(best, repeat * 2 * rows * inner * columns / (time.perf_counter() - began))
    return best


def packed_flops(shapes: Sequence[tuple[int, int]], rows: int) -> float:
    """Measure products in bfloat16 with packed matrices (N, K) of ``shapes``, forward and back, in operations a second.

    Each is the best of 10 for so many ``rows``, and they count as often as a step has them.
    """
    operations, seconds = 0, 0.0
    for outputs, inputs in shapes:
        for n, k in ((outputs, inputs), (inputs, outputs)):
            x, multiply = torch.randn(rows, k).bfloat16(), packed_linear(torch.randn(n, k).bfloat16())
            best = math.inf
            for _ in range(10):
                began = time.perf_counter()
                multiply(x)
                best = min(best, time.perf_counter() - began)
            operations += 2 * rows * n * k
            seconds += best
    return operations / seconds


def wait_for(device: str) -> None:
    """Return when ``device`` has done all it was asked."""
    if device != "cpu":
        torch.cuda.synchronize()


def weitune_side(
    job: dict[str, Any], examples: list[Example], plan: Plan, loaded: LoadedModel | None = None
) -> dict[str, Any]:
    """Train with weitune's loop, a model that is ``loaded`` or the one that the job names."""
    from accelerate import Accelerator

    from weitune.training.build import make_loop, make_trainable
    from weitune.training.passes import GraphPasses

    loaded = loaded or load(job)
    train = Train(
        batch_size=job["batch_size"],
        micro_tokens=job["micro_tokens"],
        max_steps=job["steps"],
        recompute=job.get("recompute", "auto"),
    )
    trainable = make_trainable(loaded, Lora(dropout=job["dropout"]), seed=SEED, base=job["model"])
    loop = make_loop(trainable, train, examples, plan, accelerator=Accelerator(cpu=loaded.device.type == "cpu"))
    seconds: list[float] = []
    losses: list[float] = []
    computed: list[int] = []
    peaks: list[float] = []

    class Watcher:
        def stepped(self, record: Any) -> bool:
            now = time.perf_counter()
            seconds.append(now - self.began)
            losses.append(record.loss)
            computed.append(record.computed_tokens)
            if loaded.device.type == "cpu":
                peaks.append(peak_flops(loaded.dtype))
            self.began = time.perf_counter()
            return True

        def failed(self, record: Any) -> None:
            raise RuntimeError(record)

    watcher = Watcher()
    watcher.began = time.perf_counter()
    loop.run(0, watcher)
    graphs = loop.passes.graphs if isinstance(loop.passes, GraphPasses) else None
    return {
        "seconds": seconds,
        "losses": losses,
        "computed_tokens": computed,
        "peak_flops": peaks,
        "micro_tokens": loop.memory.micro_tokens,
        "plain_blocks": trainable.capabilities.plain_blocks,
        "shares_rows": trainable.capabilities.shares_rows,
        "recordings": sum(map(bool, graphs._recordings.values())) if graphs else 0,
        "peak_bytes": peak_bytes(loaded.device),
    }


def plain_adapter(job: dict[str, Any], model: Any) -> Any:
    """Return ``model`` with PEFT's adapter, if the job says ``same_adapter`` with that which weitune's side begins
    with, so that losses without dropout must be equal."""
    lora = Lora(dropout=job["dropout"])
    if job.get("same_adapter"):
        return attach_adapter(model, lora, seed=SEED, base=job["model"])
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=find_targets(model, lora).target_modules, r=lora.r, lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
    )  # fmt: skip
    return get_peft_model(model, config)


def plain_side(job: dict[str, Any], examples: list[Example], plan: Plan) -> dict[str, Any]:
    """Train with transformers.Trainer, PEFT and padded batches."""
    from transformers import AutoTokenizer, TrainerCallback

    loaded = load(job)
    loaded.model.enable_input_require_grads()
    trainer = make_trainer(
        plain_adapter(job, loaded.model),
        loaded.tokenizer or AutoTokenizer.from_pretrained(job["tokenizer"]),
        rows_of(in_plan_order(examples, plan)),
        batch_size=job["batch_size"],
        per_device=min(4, job["batch_size"]),
    )
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

    trainer.add_callback(Clock())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": seconds, "losses": losses, "peak_bytes": peak_bytes(loaded.device)}


def main(side: str, job_path: str) -> None:
    """Run one side and print its figures."""
    from weitune.cli.shared.terminal import quiet_libraries

    quiet_libraries()
    job = json.loads(Path(job_path).read_text())
    examples = read_examples(job["examples"])
    plan = Plan(len(examples), job["batch_size"], EPOCHS, SEED, job["steps"])
    figures = (weitune_side if side == "weitune" else plain_side)(job, examples, plan)
    print(json.dumps({"side": side, **figures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
