"""What a run takes, before it starts, for ``weitune plan``: steps, memory on several devices, disk and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from weitune.errors import ModelError
from weitune.forecast.capacity import by_heart_note, room_note
from weitune.forecast.device_memory import free_bytes
from weitune.forecast.gpus import Gpu
from weitune.forecast.memory_estimate import MOST_TOKENS, MOST_TOKENS_ON_CPU, PassSize
from weitune.forecast.memory_watch import published_line
from weitune.forecast.meta_model import MetaModel, build_meta_model
from weitune.forecast.run_forecast import Fit, Format, Precision, Target, disk_bytes, fit, formats, ways_to_fit
from weitune.forecast.workload import Workload
from weitune.messages import say
from weitune.model.load.device import choose_device, choose_dtype, owns_several
from weitune.model.load.locate import locate_base
from weitune.progress import Progress
from weitune.recipe.first_rate import LONG, first_rate, strength_of
from weitune.recipe.schema import Recipe
from weitune.training.inputs import RunInputs, collect_inputs
from weitune.training.keep.kept import with_guessed
from weitune.training.optim import warmup_note
from weitune.training.reporter import Reporter
from weitune.training.timing import Timing, measure

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run of ``recipe``, and what it takes."""

    recipe: Recipe
    meta: MetaModel
    notes: Sequence[str]
    """Notes that training would print before its first step."""
    inputs: RunInputs | None
    """None if the model came without a tokenizer, so that its data could not be counted."""
    workload: Workload | None
    largest: PassSize
    here: Fit
    """This machine, in the format that the recipe asks for."""
    fits: Sequence[Fit]
    """Every target with every storage of the base."""
    ways: Sequence[str]
    """If the run does not fit here: changes of the recipe, each of which makes it fit."""
    disk: int
    processes: int = 1
    """Number of processes that share a step; memory is that of one of them."""
    timing: Timing | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the plan as `weitune plan --json` prints it, memory in bytes."""
        plan = self.inputs.plan if self.inputs else None
        adapted = self.meta.targets.to_json() if self.meta.targets else {}
        return {
            "model": {"parameters": self.meta.parameters, "trainable": self.meta.trainable, **adapted},
            "data": self.inputs.prepared.report.to_json() if self.inputs else None,
            "learning_rate": self.recipe.train.learning_rate,
            "steps": plan.steps if plan else None,
            "steps_per_epoch": plan.steps_per_epoch if plan else None,
            "saved_by_sharing": self.workload.saved_by_sharing if self.workload else None,
            "largest_pass": asdict(self.largest),
            "processes": self.processes,
            "here": _fit_json(self.here),
            "targets": [_fit_json(each) for each in self.fits],
            "ways_to_fit": list(self.ways),
            "disk_bytes": self.disk,
            "notes": list(self.notes),
            "time": asdict(self.timing) if self.timing else None,
        }


class _Notes(Reporter):
    """Keeps the lines for the user."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def plan_run(recipe: Recipe, *, device: str | None = None, others: Sequence[Gpu] = (), processes: int = 1) -> RunPlan:
    """Return the plan of a run on this machine, and on GPUs given as (name, bytes of memory).

    With several ``processes``, memory is that of each one: they share the memory of a CPU, but each has its own GPU.
    Only the configuration and the tokenizer of the model are needed. Raises InputError as training would.
    """
    notes = _Notes()
    files = locate_base(recipe, weights=False)
    meta = build_meta_model(files, recipe.adapter)
    inputs: RunInputs | None = None
    if files.gguf or any((files.folder / name).is_file() for name in _TOKENIZERS):
        inputs = with_guessed(collect_inputs(recipe, notes, weights=False), notes)
        recipe = inputs.recipe
        for note in filter(None, (warmup_note(inputs.plan.steps, recipe.train), *_capacity_notes(inputs, meta))):
            notes.say(note)
    else:
        notes.say(say("training.run_plan.data_not_counted"))
    largest, workload = _largest(recipe, meta, inputs, processes)
    most_on_cpu = inputs.most_on_cpu(meta.capabilities, processes) if inputs else MOST_TOKENS_ON_CPU
    target = choose_device(device)
    form = Format.from_recipe(recipe, choose_dtype(recipe.train.precision, target))
    this = _this_machine(target, processes, spread=device is None and processes == 1)
    here = fit(meta, recipe, this, form, largest, processes, most_on_cpu)
    if line := published_line(files, here.need, form.storage):
        notes.say(line)
    targets = [(this, form.precision)]
    targets += [(Target(each.name, "cuda", each.bytes), _precision_on(each, recipe)) for each in others]
    return RunPlan(
        recipe=recipe,
        meta=meta,
        notes=notes.lines,
        inputs=inputs,
        workload=workload,
        largest=largest,
        here=here,
        fits=[
            fit(meta, recipe, each, to, largest, processes, most_on_cpu)
            for each, precision in targets
            for to in formats(meta, recipe, precision)
        ],
        ways=[] if here.fits else ways_to_fit(meta, recipe, this, form, largest, processes, most_on_cpu),
        disk=disk_bytes(meta, recipe),
        processes=processes,
    )


def timed(plan: RunPlan, *, device: str | None = None, progress: Progress | None = None) -> RunPlan:
    """Return ``plan`` with the time of the run in one process, from two steps made here. Needs the weights."""
    if plan.inputs is None:
        raise ModelError("training.run_plan.no_tokenizer")
    return replace(plan, timing=measure(plan.inputs, plan.meta, device=device, progress=progress))


def _this_machine(target: torch.device, processes: int, *, spread: bool) -> Target:
    """Return what one of ``processes`` has here; ``spread``: a single one divides the model among all GPUs it sees."""
    kind, free = target.type, free_bytes(target) // (processes if target.type == "cpu" else 1)
    if spread and owns_several(target):
        devices = [torch.device(kind, number) for number in range(torch.cuda.device_count())]
        kind, free = f"{len(devices)} × {kind}", sum(map(free_bytes, devices))
    return Target(say("training.run_plan.this_machine", kind=kind), target.type, free)


def _precision_on(gpu: Gpu, recipe: Recipe) -> Precision:
    """Return in what training computes on ``gpu``; see :func:`.choose_dtype`."""
    chosen = recipe.train.precision
    if chosen == "auto":
        return "bf16" if gpu.bf16 else "fp32"
    return chosen


def _capacity_notes(inputs: RunInputs, meta: MetaModel) -> list[str]:
    """Return notes on whether the adapter has room for the rows that the run sees, and whether it will repeat them.

    Preferences are not learned word by word.
    """
    if inputs.recipe.preference:
        return []
    recipe, data, passes = inputs.recipe, inputs.basis["data"], inputs.plan.steps / inputs.plan.steps_per_epoch
    rows = inputs.plan.used
    tokens = round(data["learned tokens"] * rows / data["examples"])
    notes = [room_note(meta.trainable, recipe.adapter.r, tokens)] if recipe.adapter else []
    long_run = first_rate(meta.shape.hidden, LONG, strength=strength_of(recipe), whole_model=recipe.adapter is None)
    return [*notes, by_heart_note(meta.trainable, tokens, rows, passes, recipe.train.rate, long_run)]


def _largest(
    recipe: Recipe, meta: MetaModel, inputs: RunInputs | None, processes: int
) -> tuple[PassSize, Workload | None]:
    """Return the largest pass, unsplit, and the steps it is part of."""
    if inputs is None:
        undivided = recipe.tokens.max_length * recipe.preference.answers if recipe.preference else 0
        tokens = -(-recipe.train.batch_size // processes) * (undivided or recipe.tokens.max_length)
        return PassSize(tokens, tokens, recipe.tokens.max_length, undivided=undivided), None
    given = recipe.train.micro_tokens
    most = MOST_TOKENS if given == "auto" else max(MOST_TOKENS, given)
    workload = Workload.lay_out(
        inputs.examples, inputs.plan, inputs.layout(meta.capabilities), most, processes=processes
    )
    known = {"undivided" if recipe.preference else "longest": inputs.longest}
    return replace(workload.largest, **known), workload


def _fit_json(each: Fit) -> dict[str, Any]:
    return {
        "target": each.target.name,
        "memory_bytes": each.target.memory,
        "precision": each.format.precision,
        "storage": each.format.storage,
        **asdict(each.chosen),
        "need": each.need.parts(),
        "total_bytes": each.need.total,
        "fits": each.fits,
    }
