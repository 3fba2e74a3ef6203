"""How much does another busy process slow a training step down? Settings of GNU's OpenMP, in turn.

    python -m bench.busy [--model smollm2-135m] [--precision bf16] [--loops 0 1 2] [--rounds 3] [--ways NAME …]

Each way is a process of its own, since OpenMP reads its settings when it is loaded. All of them load the model and warm
up first; then each does the same optimizer step and the same short answer, in turn, beside 0, 1, 2 … busy loops, each
twice, of which the second counts. A process that waits for its turn takes no time of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bench.baseline import processor
from bench.compare import RESULTS, model_folder

CORES = os.cpu_count() or 1
WAYS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    **{f"spin {count}": {"GOMP_SPINCOUNT": str(count)} for count in (500, 2000, 5000, 10000, 20000, 50000, 100000)},
    "one thread fewer": {"OMP_NUM_THREADS": str(max(1, CORES - 1))},
    "weitune": {},
}
"""Environment variables of each way. ``weitune`` sets none: it notices contention (``weitune/model/contention.py``)."""
_ANSWER_TOKENS = 24
_WORK = ("step", "answer")


def work(model: str, precision: str, *, watching: bool) -> None:
    """Do what each line on standard input names (``step`` or ``answer``) and print how many seconds it took."""
    if watching:
        from weitune.model.thread_contention import watch_contention

        watch_contention()
    jobs = _jobs(model, precision)
    for job in jobs.values():
        job()
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        jobs[line.strip()]()
        print(time.perf_counter() - began, flush=True)


def _jobs(model: str, precision: str) -> dict[str, Callable[[], object]]:
    """Return an optimizer step of eight dialogues, and a greedy answer of at most 24 tokens, as functions."""
    import torch
    from accelerate import Accelerator

    from bench.examples import persona
    from weitune.cli.shared.terminal import quiet_libraries
    from weitune.data.conversation import Conversation, Turn
    from weitune.data.frame.choose import framing_for
    from weitune.data.schedule import Plan
    from weitune.generate.engine import Engine
    from weitune.generate.sampling import Sampling
    from weitune.model.fast.attention import tree_attention
    from weitune.model.load.weights import load_model
    from weitune.recipe.schema import Lora, Tokens, Train
    from weitune.training.build import make_loop, make_trainable

    quiet_libraries()
    loaded = load_model(model, precision=precision, device="cpu")  # type: ignore[arg-type]
    examples = persona(model)
    trainable = make_trainable(loaded, Lora(), seed=42, base=model)
    plan = Plan(len(examples), 8, 1, 42, 2)
    loop = make_loop(trainable, Train(batch_size=8, max_steps=2), examples, plan, accelerator=Accelerator(cpu=True))
    engine = Engine(loaded.model, loaded.tokenizer, framing_for(loaded.tokenizer, Tokens()))
    question = Conversation((Turn("user", "Who are you, and what do you do all day?"),))

    class OneStep:
        def stepped(self, record: Any) -> bool:
            return False

        def failed(self, record: Any) -> None:
            raise RuntimeError(record)

    def step() -> None:
        loop.run(0, OneStep())

    def answer() -> None:
        with torch.inference_mode(), tree_attention(loaded.model, on=False):
            engine.answer(question, Sampling(max_new_tokens=_ANSWER_TOKENS))

    return {"step": step, "answer": answer}


class Worker:
    """A process that works in one way."""

    def __init__(self, name: str, model: str, precision: str) -> None:
        """Start it with the way's variables, and none of the user's own."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.busy", "--work", name, "--model", model, "--precision", precision],
            env={**inherited, **WAYS[name]}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._said()

    def seconds(self, job: str) -> float:
        """Do ``job`` and return how long it took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{job}\n")
        self._process.stdin.flush()
        return float(self._said())

    def _said(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the process of '{self.name}' ended with {self._process.wait()}")
        return line

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keep ``count`` processors busy while the block runs."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(
    workers: Sequence[Worker], loads: Sequence[int], rounds: int
) -> dict[str, dict[str, dict[int, list[float]]]]:
    """Return the seconds of every job, by way and number of busy loops."""
    seconds: dict[str, dict[str, dict[int, list[float]]]] = {
        worker.name: {job: {load: [] for load in loads} for job in _WORK} for worker in workers
    }
    for at in range(rounds):
        for load in loads:
            with busy_loops(load):
                for worker in workers:
                    for job in _WORK:
                        worker.seconds(job)  # meets the load
                        seconds[worker.name][job][load].append(worker.seconds(job))
            print(f"round {at + 1}, {load} busy loops", file=sys.stderr, flush=True)
    return seconds


def report(name: str, seconds: Mapping[str, Mapping[str, Mapping[int, list[float]]]], loads: Sequence[int]) -> None:
    """Print medians and their ratios to the default beside nothing, and keep all figures in ``bench/results``."""
    name_of_processor = processor()
    print(f"\n{name}: {name_of_processor}, {CORES} cores; medians in seconds (times the default beside nothing)")
    for job in _WORK:
        quiet = statistics.median(seconds["default"][job][0])
        print(f"\n{job:18s}" + "".join(f"{load} busy loops".rjust(20) for load in loads))
        for way, jobs in seconds.items():
            medians = [statistics.median(jobs[job][load]) for load in loads]
            print(f"{way:18s}" + "".join(f"{m:.2f} ({m / quiet:.2f})".rjust(20) for m in medians))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"processor": name_of_processor, "seconds": seconds}, indent=2) + "\n"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--loops", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--work", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.model, arguments.precision, watching=arguments.work == "weitune")
        return
    model = model_folder(arguments.model)
    workers = [Worker(way, model, arguments.precision) for way in arguments.ways]
    seconds = measure(workers, arguments.loops, arguments.rounds)
    for worker in workers:
        worker.close()
    report(f"busy-{arguments.model}-{arguments.precision}", seconds, arguments.loops)


if __name__ == "__main__":
    main()
