"""How much faster is preference tuning? weitune against TRL's trainers, step by step in turn, on real pairs.

    weitune data answer alpaca_en_demo.json --model qwen2.5-0.5b --temperature 0 --max-new-tokens 256 \\
        --output worse.jsonl
    weitune data pair --chosen alpaca_en_demo.json --rejected worse.jsonl --output pairs.jsonl
    python -m bench.preference_speed --trl-python trl/bin/python [--pairs pairs.jsonl --limit 200] [--method dpo|kto]

TRL has an environment of its own (:mod:`.preference_oracle`) and is measured with one and with four pairs a batch, both
in float32 and without recomputation. It computes the reference again in every step, as it does by default, and with
``-once`` (DPO alone) before the first step, as weitune always does. All sides have the same tokens, adapter, steps and
optimizer; for DPO their losses must agree. (TRL's KTO compares with the mismatched answers of a batch, weitune with
those of the whole step.)

Every side is a process that waits while the others work. The time of an epoch is that of the reference and the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SIDES = ["weitune", "trl-1", "trl-4", "trl-1-once", "trl-4-once"]
SEED, BETA = 42, 0.1
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""What weitune adapts of models of this shape."""


def main() -> int:
    """Measure every side, print the ratios and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", required=True, help="the Python of the environment with TRL")
    parser.add_argument("--model", default="smollm2-135m", help="name of a test model")
    parser.add_argument("--pairs", help="file of pairs  [default: the shared pairs_en_demo.jsonl]")
    parser.add_argument("--limit", type=int, help="take only so many pairs")
    parser.add_argument("--method", default="dpo", choices=["dpo", "kto"])
    parser.add_argument("--batch-size", type=int, default=8, help="groups in a step; KTO makes two of a pair")
    parser.add_argument("--max-length", type=int, default=512, help="longer pairs are left out")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    arguments = parser.parse_args()
    if arguments.method == "kto":
        arguments.sides = [side for side in arguments.sides if not side.endswith("-once")]
    job = make_job(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job))
        figures = take_turns(arguments, path, len(job["steps"]))
    result = summary(job, figures)
    show(result)
    RESULTS.mkdir(exist_ok=True)
    name = f"preference_speed-{arguments.model}-{arguments.method}.json"
    (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")
    return 0


def make_job(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what all sides need: groups as token ids, and the groups and the learning rate of every step."""
    from transformers import AutoTokenizer

    from bench.compare import model_folder
    from bench.examples import SHARED
    from weitune.data.frame.choose import framing_for
    from weitune.data.prepare.prepare import prepare_groups
    from weitune.data.schedule import Plan
    from weitune.recipe.schema import Recipe
    from weitune.training.optim import learning_rate

    folder = model_folder(arguments.model)
    recipe = Recipe(
        model=folder,
        data=[arguments.pairs or str(SHARED / "pairs_en_demo.jsonl")],
        preference={"method": arguments.method, "beta": BETA},
        tokens={"max_length": arguments.max_length},
        train={"batch_size": arguments.batch_size, "epochs": arguments.epochs, "seed": SEED},
    )
    prepared = prepare_groups(recipe, framing_for(AutoTokenizer.from_pretrained(folder), recipe.tokens))
    per_pair = 2 if arguments.method == "kto" else 1
    count = min(len(prepared), (arguments.limit or len(prepared)) * per_pair)
    groups = [prepared[k] for k in range(count)]
    plan = Plan(len(groups), recipe.train.batch_size, recipe.train.epochs, SEED)
    return {
        "model": folder,
        "method": arguments.method,
        "batch_size": recipe.train.batch_size,
        "epochs": recipe.train.epochs,
        "max_length": recipe.tokens.max_length,
        "pairs": count // per_pair,
        "threads": arguments.threads,
        "groups": [
            {
                "prompt": group.answers[0].input_ids[: group.answers[0].spans[0].start],
                "answers": [a.input_ids[a.spans[0].start : a.spans[-1].stop] for a in group.answers],
                "liked": group.liked,
            }
            for group in groups
        ],
        "steps": [plan.step(k).tolist() for k in range(plan.steps)],
        "rate": recipe.train.learning_rate,
        "rates": [learning_rate(k, plan.steps, recipe.train) for k in range(plan.steps)],
    }


def take_turns(arguments: argparse.Namespace, job: Path, steps: int) -> dict[str, dict[str, Any]]:
    """Let every side compute the reference, then each step in turn; return their figures."""
    processes = {side: start(side, arguments, job) for side in arguments.sides}
    figures: dict[str, dict[str, Any]] = {}
    for side, process in processes.items():
        figures[side] = {"reference": ask(process, "reference"), "steps": []}
    for step in range(steps):
        for side in arguments.sides[step % len(arguments.sides) :] + arguments.sides[: step % len(arguments.sides)]:
            figures[side]["steps"].append(ask(processes[side], str(step)))
    for side, process in processes.items():
        figures[side]["peak_bytes"] = ask(process, "peak")["bytes"]
        process.communicate("end\n")
    return figures


def start(side: str, arguments: argparse.Namespace, job: Path) -> subprocess.Popen[str]:
    """Start the process of ``side`` and wait until it has loaded its model."""
    python = sys.executable if side == "weitune" else arguments.trl_python
    command = [python, "-W", "ignore", "-c", f"from bench.preference_speed import serve; serve({side!r}, {str(job)!r})"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    ask(process, "ready")
    return process


def ask(process: subprocess.Popen[str], command: str) -> dict[str, Any]:
    """Send ``command`` to a side and return its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(command + "\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("{"):
            return dict(json.loads(line))
    raise RuntimeError(f"a side ended at '{command}'")


def serve(side: str, path: str) -> None:
    """Be one side: answer commands from the standard input with lines of JSON."""
    import resource

    job = json.loads(Path(path).read_text())
    worker: Any = Weitune(job) if side == "weitune" else Trl(job, int(side.split("-")[1]), once=side.endswith("once"))
    for line in map(str.strip, sys.stdin):
        if line == "end":
            return
        answer: dict[str, Any] = {}
        if line == "peak":
            answer = {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        elif line != "ready":
            began, busy = time.perf_counter(), time.process_time()
            answer = {"loss": worker.reference() if line == "reference" else worker.step(int(line))}
            answer |= {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - busy}
        print(json.dumps(answer), flush=True)


def fill_first(model: Any) -> None:
    """Draw the first matrices of an adapter, the same ones on every side; the second ones are 0."""
    from bench.preference_cases import fill

    fill(((n, p) for n, p in model.named_parameters() if "lora_A" in n), seed=1, deviation=0.02)


class Weitune:
    """weitune's loop over the groups of a job."""

    def __init__(self, job: dict[str, Any]) -> None:
        from weitune.data.conversation import Example, Span
        from weitune.data.preference.values import Group
        from weitune.data.schedule import Plan
        from weitune.model.load.weights import load_model
        from weitune.recipe.preference import Preference
        from weitune.recipe.schema import Lora
        from weitune.training.build import make_trainable

        loaded = load_model(job["model"], precision="fp32", device="cpu")
        self._trainable = make_trainable(loaded, Lora(dropout=0), seed=SEED, base=job["model"])
        fill_first(self._trainable.trained.model)
        self._job, self._preference = job, Preference(method=job["method"], beta=BETA)
        self._plan = Plan(len(job["groups"]), job["batch_size"], job["epochs"], SEED)
        self._groups = [
            Group(
                tuple(
                    Example((*g["prompt"], *a), (Span(len(g["prompt"]), len(g["prompt"] + a)),)) for a in g["answers"]
                ),
                tuple(g["liked"]),
            )
            for g in job["groups"]
        ]

    def reference(self) -> None:
        """Compute the reference of all groups, and make the loop."""
        from accelerate import Accelerator

        from weitune.data.preference.mismatched import mismatched
        from weitune.data.preference.reference import MISMATCHED, AnswerSums, Reference
        from weitune.forecast.workload import most_tokens_on_cpu
        from weitune.recipe.schema import Train
        from weitune.training.build import make_loop
        from weitune.training.preference.answer_meter import AnswerMeter
        from weitune.training.preference.preferences import Preferences

        job, plan, accelerator = self._job, self._plan, Accelerator(cpu=True)
        train = Train(batch_size=job["batch_size"], epochs=job["epochs"], learning_rate=job["rate"], seed=SEED)
        memory = self._trainable.memory_plan(
            train,
            longest=max(group.tokens for group in self._groups),
            most_on_cpu=most_tokens_on_cpu(self._groups, plan, self._trainable.group_layout),
        )
        meter = AnswerMeter.of(self._trainable, accelerator, memory.micro_tokens)
        parts: dict[str, AnswerSums] = {}
        known: dict[int, tuple[float, ...]] = {}
        for step in range(plan.steps_per_epoch):  # step by step, as a run does
            sums = meter([self._groups[int(k)] for k in plan.step(step)], micro_tokens=memory.micro_tokens)
            known.update((int(k), sums[n]) for n, k in enumerate(plan.step(step)))
        if job["method"] == "kto":
            steps = ([self._groups[int(k)] for k in plan.step(step)] for step in range(plan.steps))
            parts[MISMATCHED] = AnswerSums.joined([meter(mismatched(step, job["max_length"])) for step in steps])
        groups = [replace(group, reference=known[k]) for k, group in enumerate(self._groups)]
        preferences = Preferences(self._preference, job["max_length"], Reference(parts))
        self._loop = make_loop(
            self._trainable, train, groups, plan, accelerator=accelerator, preferences=preferences, memory=memory
        )

    def step(self, step: int) -> float:
        """Make a step and return its loss."""
        losses: list[float] = []

        class OneStep:
            def stepped(self, record: Any) -> bool:
                losses.append(record.loss)
                return False

            def failed(self, record: Any) -> None:
                raise RuntimeError(record)

        self._loop.run(step, OneStep())
        return losses[0]


class Trl:
    """TRL's trainer over the groups of a job, ``pairs`` of them in a batch."""

    def __init__(self, job: dict[str, Any], pairs: int, *, once: bool) -> None:
        import torch
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM

        from bench.preference_oracle import make_trainer

        base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
        self._job, self._once, self._pairs_only = job, once, job["method"] != "kto"
        self._size = pairs if self._pairs_only else 2 * pairs
        rows = self._rows(range(min(2, len(job["groups"]))))
        adapter = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.0, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
        self._trainer = make_trainer(job["method"], base, rows, BETA, self._size, adapter=adapter)
        self._model = self._trainer.model.train()
        fill_first(self._model)
        self._adapter = [p for n, p in self._model.named_parameters() if "lora_" in n]
        self._optimizer = torch.optim.AdamW(self._adapter, lr=0.0, weight_decay=0.0)
        self._known: list[tuple[float, float]] = []

    def _rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return groups as TRL's rows."""
        groups = [self._job["groups"][k] for k in numbers]
        if self._pairs_only:
            return [
                {"prompt_ids": g["prompt"], "chosen_ids": g["answers"][0], "rejected_ids": g["answers"][1]}
                for g in groups
            ]
        others = [*groups[1:], groups[0]]
        return [
            {
                "prompt_ids": g["prompt"],
                "completion_ids": g["answers"][0],
                "label": g["liked"][0],
                "KL_completion_ids": other["answers"][0],
            }
            for g, other in zip(groups, others, strict=True)
        ]

    def reference(self) -> None:
        """Compute the reference of all pairs, if it is not to be computed in every step."""
        if not self._once:
            return
        for start in range(0, len(self._job["groups"]), self._size):
            numbers = range(start, min(start + self._size, len(self._job["groups"])))
            batch = self._trainer.data_collator(self._rows(numbers))
            chosen, rejected = self._trainer.compute_ref_log_probs(self._model, batch)
            self._known += zip(chosen.tolist(), rejected.tolist(), strict=True)
        self._trainer.precompute_ref_logps = True

    def step(self, step: int) -> float:
        """Make a step, batch by batch, and return its loss."""
        import torch

        numbers, loss = self._job["steps"][step], 0.0
        for start in range(0, len(numbers), self._size):
            own = numbers[start : start + self._size]
            rows = self._rows(own)
            if self._once:
                rows = [
                    {**row, "ref_chosen_logps": self._known[k][0], "ref_rejected_logps": self._known[k][1]}
                    for k, row in zip(own, rows, strict=True)
                ]
            part = self._trainer._compute_loss(self._model, self._trainer.data_collator(rows), False)
            part = part * (len(own) / len(numbers))
            part.backward()
            loss += float(part.detach())
        torch.nn.utils.clip_grad_norm_(self._adapter, 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = self._job["rates"][step]
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss


def summary(job: dict[str, Any], figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the times of epochs of every side, its memory, and how far its losses are from weitune's."""
    from bench.baseline import processor

    per_epoch = len(job["steps"]) // job["epochs"]
    sides = {}
    for side, own in figures.items():
        seconds, busy = ([s[key] for s in own["steps"]] for key in ("seconds", "processor_seconds"))
        sides[side] = {
            "reference_seconds": own["reference"]["seconds"],
            "step_seconds": seconds,
            "epoch_seconds": [own["reference"]["seconds"] + sum(seconds[: n * per_epoch]) for n in epochs(job)],
            "epoch_processor_seconds": [
                own["reference"]["processor_seconds"] + sum(busy[: n * per_epoch]) for n in epochs(job)
            ],
            "peak_bytes": own["peak_bytes"],
            "losses": [s["loss"] for s in own["steps"]],
        }
    ours = sides["weitune"]
    for side in sides.values():
        for ratios, times in (("ratios", "epoch_seconds"), ("processor_ratios", "epoch_processor_seconds")):
            side[ratios] = [x / y for x, y in zip(side[times], ours[times], strict=True)]
        side["largest_difference_of_losses"] = max(
            abs(x - y) / abs(y) for x, y in zip(side["losses"], ours["losses"], strict=True)
        )
    facts = {key: job[key] for key in ("method", "batch_size", "epochs", "max_length", "pairs", "threads")}
    return {"processor": processor(), "model": Path(job["model"]).name, **facts, "sides": sides}


def epochs(job: dict[str, Any]) -> range:
    """Return the numbers of epochs whose times are told."""
    return range(1, job["epochs"] + 1)


def show(result: dict[str, Any]) -> None:
    """Print a table."""
    print(f"{result['method']}, {result['pairs']} pairs, {result['batch_size']} groups a step, {result['model']}")
    ours = result["sides"]["weitune"]["peak_bytes"]
    for side, own in result["sides"].items():
        each = zip(own["epoch_seconds"], own["ratios"], own["processor_ratios"], strict=True)
        times = "  ".join(
            f"{n} epochs {seconds:7.1f} s ({ratio:.2f}, processor {busy:.2f})"
            for n, (seconds, ratio, busy) in enumerate(each, 1)
        )
        print(
            f"  {side:12s} reference {own['reference_seconds']:6.1f} s  {times}  {own['peak_bytes'] / 1e9:5.2f} GB "
            f"(weitune {ours / own['peak_bytes']:.2f})  losses differ by {own['largest_difference_of_losses']:.1e}"
        )


if __name__ == "__main__":
    sys.exit(main())
