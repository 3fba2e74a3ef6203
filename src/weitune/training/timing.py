"""How long a run takes on this machine, from a few steps that are computed and thrown away.

The time of a step is assumed to be proportional to its floating-point operations, which the workload gives for every
step. So it does not matter whether the measured steps happen to be short or long. The time of the reference, of methods
that have one, is proportional to its tokens; the steps that are timed learn with their own reference.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from weitune.forecast.device_memory import MemoryPlan, peak_bytes
from weitune.forecast.meta_model import MetaModel
from weitune.forecast.run_forecast import step_costs
from weitune.forecast.workload import Workload
from weitune.progress import Progress
from weitune.training.build import load_base, make_loop, make_trainable, pack_matrices
from weitune.training.distributed.processes import make_accelerator
from weitune.training.inputs import RunInputs
from weitune.training.loop import StepRecord
from weitune.training.preference.answer_meter import AnswerMeter
from weitune.training.reference.measured import (
    has_reference,
    joined,
    measure_reference,
    preferences_of,
    reference_tokens,
)
from weitune.training.trainable import Trainable

if TYPE_CHECKING:
    from accelerate import Accelerator

MEASURED_STEPS = 2
"""Besides a first one that warms up."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The time of a run, extrapolated from the measured steps."""

    step_seconds: float
    """Mean over the run's steps."""
    seconds: float
    """Of all steps; loading, the reference, evaluations and checkpoints are extra."""
    reference_seconds: float
    """Of the reference before the first step; 0 without one."""
    tokens_per_second: float
    peak_bytes: int


class _Stopwatch:
    """A watcher that keeps records, and ends the loop after the measured steps."""

    def __init__(self, tell: Progress | None) -> None:
        self.records: list[StepRecord] = []
        self._tell = tell

    def stepped(self, record: StepRecord) -> bool:
        self.records.append(record)
        if self._tell is not None:
            self._tell(len(self.records), MEASURED_STEPS + 1)
        return len(self.records) <= MEASURED_STEPS

    def failed(self, record: StepRecord) -> None:
        """The loop raises by itself."""


def measure(
    inputs: RunInputs, meta: MetaModel, *, device: str | None = None, progress: Progress | None = None
) -> Timing:
    """Load the model, train three steps and discard them. Raises the same errors as training."""
    recipe = inputs.recipe
    loaded = load_base(recipe, device)
    trainable = make_trainable(loaded, recipe.adapter, seed=recipe.train.seed, base=recipe.model, fresh=False)
    accelerator = make_accelerator(loaded.device)
    most_on_cpu = inputs.most_on_cpu(trainable.capabilities)
    memory = trainable.memory_plan(recipe.train, longest=inputs.longest, most_on_cpu=most_on_cpu)
    pack_matrices(trainable, memory)
    inputs, reference_seconds = _with_reference(inputs, trainable, accelerator, memory)
    loop = make_loop(
        trainable,
        recipe.train,
        inputs.examples,
        inputs.plan,
        accelerator=accelerator,
        memory=memory,
        longest=inputs.longest,
        preferences=preferences_of(inputs),
    )
    watch = _Stopwatch(progress)
    loop.run(0, watch)
    counted = watch.records[1:] or watch.records
    first = Workload.lay_out(
        inputs.examples, inputs.plan, loop.layout, loop.memory.micro_tokens, steps=[r.step - 1 for r in counted]
    )
    whole = Workload.lay_out(inputs.examples, inputs.plan, loop.layout, loop.memory.micro_tokens)
    pace = sum(record.step_seconds for record in counted) / sum(step_costs(meta, first))
    costs = step_costs(meta, whole)
    step_seconds = pace * sum(costs) / len(costs)
    return Timing(
        step_seconds=step_seconds,
        seconds=step_seconds * inputs.plan.steps,
        reference_seconds=reference_seconds,
        tokens_per_second=whole.tokens / (pace * sum(costs)),
        peak_bytes=peak_bytes(loaded.device),
    )


def _with_reference(
    inputs: RunInputs, trainable: Trainable, accelerator: Accelerator, memory: MemoryPlan
) -> tuple[RunInputs, float]:
    """Return ``inputs`` with the reference of the first steps, and the seconds that the whole reference takes."""
    if not has_reference(inputs.recipe):
        return inputs, 0.0
    meter = AnswerMeter.of(trainable, accelerator, memory.micro_tokens)

    def first(steps: int) -> RunInputs:
        plan = replace(inputs.plan, max_steps=min(inputs.plan.steps, steps))
        return replace(inputs, plan=plan, validation=None)

    measure_reference(first(1), meter, memory.micro_tokens, None)  # warms up
    few = first(MEASURED_STEPS + 1)
    began = time.perf_counter()
    reference = measure_reference(few, meter, memory.micro_tokens, None)
    pace = (time.perf_counter() - began) / reference_tokens(few)
    return replace(joined(few, reference), plan=inputs.plan), pace * reference_tokens(inputs)
