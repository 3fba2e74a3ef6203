"""What does each idea give to a whole step? The step as it is, and again with one idea taken out, in turn.

    python -m bench.ablation [--model qwen2.5-0.5b] [--rounds 2] [--only NAME …]

All variants run the same optimizer steps of huanhuan.json in one process, one step at a time in turn, so that they meet
the same moods of the machine. Where an idea is taken out, what the plain recipe does is put in its place.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from bench.compare import RESULTS, model_folder
from bench.examples import huanhuan
from weitune.data.layout import SHARED
from weitune.data.pack import PackedBatch, pack, pack_separately
from weitune.data.schedule import Plan
from weitune.model import capabilities
from weitune.model.fast import attention, decoder, dropout, matmul
from weitune.model.fast.channel import feed_forward
from weitune.model.fast.self_attention import heads
from weitune.model.load.weights import load_model
from weitune.model.storage import allocator
from weitune.recipe.schema import Lora, Train
from weitune.training import build
from weitune.training.loop import Loop

Change = Callable[[ExitStack], None]


def padded(examples: Any) -> PackedBatch:
    """Lay the examples out one after the other, each padded to the longest with tokens that predict nothing."""
    alone = pack_separately(examples)
    spare = len(examples) * max(len(e.input_ids) for e in examples) - len(alone)
    ends = np.arange(len(alone) + 1, len(alone) + spare + 1)
    return replace(
        alone,
        input_ids=np.concatenate([alone.input_ids, np.zeros(spare, np.int64)]),
        position_ids=np.concatenate([alone.position_ids, np.zeros(spare, np.int64)]),
        subtree_end=np.concatenate([alone.subtree_end, ends]),
    )


def every_row(examples: Any) -> PackedBatch:
    """Let every token of the row predict something, with weight 0 where nothing is learned: logits everywhere."""
    row = pack(examples)
    idle = np.setdiff1d(np.arange(len(row)), row.rows)
    return replace(
        row,
        rows=np.concatenate([row.rows, idle]),
        targets=np.concatenate([row.targets, np.zeros(len(idle), np.int64)]),
        weights=np.concatenate([row.weights, np.zeros(len(idle), np.float32)]),
    )


class Bernoulli(dropout.DropoutDraws):
    """A mask of its own for every input, drawn by ``bernoulli_`` and kept for backward."""

    def __init__(self, rate: float, length: int, device: torch.device, dtype: torch.dtype) -> None:
        """Draw nothing yet."""
        self.scale, self._keep, self._dtype, self._masks = 1 / (1 - rate), 1 - rate, dtype, {}

    def draw_offset(self) -> int:
        """Number the masks."""
        return len(self._masks) + int(torch.randint(1 << 30, ()))

    def mask(self, offset: int, shape: tuple[int, int]) -> torch.Tensor:
        """Draw the mask at its first use."""
        if (offset, shape) not in self._masks:
            self._masks[offset, shape] = torch.empty(shape, dtype=self._dtype).bernoulli_(self._keep)
        return self._masks[offset, shape]


def layout(lay: Callable[[Any], PackedBatch]) -> Change:
    """Lay the step's examples out with ``lay``."""
    return lambda stack: stack.enter_context(patch.object(capabilities, "SHARED", replace(SHARED, lay=lay)))


def setting(module: Any, name: str, value: Any) -> Change:
    """Give a constant or function of a module another value."""
    return lambda stack: stack.enter_context(patch.object(module, name, value))


def own_modules(stack: ExitStack) -> None:
    """Run transformers' modules and PEFT's layers under autograd, still on the shared row."""
    stack.enter_context(patch.object(build.BlockDecoder, "from_model", lambda *given: None))


def whole_last_block(stack: ExitStack) -> None:
    """Run the last block at every row and take the supervised ones afterwards."""
    run = decoder.run_block

    def everywhere(parts: Any, hidden: Any, shared: Any, rows: Any = None) -> Any:
        output = run(parts, hidden, shared)
        return output if rows is None else output[rows]

    stack.enter_context(patch.object(decoder, "run_block", everywhere))


@contextmanager
def memory_given_back() -> Iterator[None]:
    """Let glibc return freed memory at once, as it does by default."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-4, 65536)
    libc.mallopt(-1, 128 * 1024)
    libc.mallopt(-3, 128 * 1024)
    libc.malloc_trim(0)
    try:
        with patch.object(build, "keep_freed_memory", lambda: None):
            yield
    finally:
        allocator.keep_freed_memory()


VARIANTS: dict[str, Change] = {
    "as it is": lambda stack: None,
    "no sharing of prefixes": layout(pack_separately),
    "no sharing, and padding": layout(padded),
    "logits at every row": layout(every_row),
    "modules and PEFT layers under autograd": own_modules,
    "a Bernoulli mask for every input": setting(decoder, "DropoutDraws", Bernoulli),
    "one dense mask in attention": setting(heads, "attention_for", lambda device: attention.DENSE),
    "wide values whole, not in slices": setting(feed_forward, "SLICE_COLUMNS", (64, 1 << 60)),
    "the last block at every row": whole_last_block,
    "the head in one piece": setting(matmul, "WEIGHT_ROWS", (1 << 60, 1 << 60)),
    "freed memory given back": lambda stack: stack.enter_context(memory_given_back()),
}


class Seconds:
    """Keeps the seconds of the steps it sees."""

    def __init__(self) -> None:
        """Begin with none."""
        self.of: list[float] = []

    def stepped(self, record: Any) -> bool:
        """Keep one."""
        self.of.append(record.step_seconds)
        return True

    def failed(self, record: Any) -> None:
        """Give up."""
        raise RuntimeError(record)


def run_step(make: Callable[[], Loop], change: Change, start: int) -> float:
    """Return the seconds of one step with ``change``; the one before it warms up."""
    seconds = Seconds()
    with ExitStack() as stack:
        change(stack)
        make().run(start, seconds)
    return seconds.of[-1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-0.5b")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    arguments = parser.parse_args()

    from accelerate import Accelerator

    model = model_folder(arguments.model)
    examples = huanhuan(model)
    loaded = load_model(model, precision="fp32", device="cpu")
    trainable = build.make_trainable(loaded, Lora(), seed=0, base=model)
    accelerator = Accelerator(cpu=True)
    taken: dict[str, list[float]] = {name: [] for name in ["as it is", *arguments.only]}
    for k in range(arguments.rounds):
        plan = Plan(len(examples), 16, 1, 42, 2 + k)
        for name, seconds in taken.items():

            def make(plan: Plan = plan) -> Loop:
                return build.make_loop(trainable, Train(), examples, plan, accelerator=accelerator)

            seconds.append(run_step(make, VARIANTS[name], k))
            print(f"  round {k + 1}  {seconds[-1]:7.2f} s  {name}", flush=True)
    usual = statistics.median(taken["as it is"])
    print(f"\nablation-{arguments.model}   (median of {arguments.rounds} steps of 16 examples)")
    for name, seconds in taken.items():
        print(f"  {statistics.median(seconds):7.2f} s  {statistics.median(seconds) / usual:5.2f} times  {name}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"ablation-{arguments.model}.json").write_text(json.dumps(taken, indent=2) + "\n")


if __name__ == "__main__":
    main()
