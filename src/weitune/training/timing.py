"""How long a run takes on this machine, from a few steps that are computed and thrown away.

The time of a step is assumed to be proportional to its floating-point operations, which the workload gives for every
step. So it does not matter whether the measured steps happen to be short or long.
"""

from __future__ import annotations

from dataclasses import dataclass

from weitune.forecast.device_memory import peak_bytes
from weitune.forecast.meta_model import MetaModel
from weitune.forecast.run_forecast import step_costs
from weitune.forecast.workload import Workload
from weitune.progress import Progress
from weitune.training.build import load_base, make_loop, make_trainable
from weitune.training.distributed.processes import make_accelerator
from weitune.training.inputs import RunInputs
from weitune.training.loop import StepRecord
from weitune.training.reference.measured import preferences_of

MEASURED_STEPS = 2
"""Besides a first one that warms up."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The time of a run, extrapolated from the measured steps."""

    step_seconds: float
    """Mean over the run's steps."""
    seconds: float
    """Of all steps; loading, evaluations and checkpoints are extra."""
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
    loop = make_loop(
        trainable,
        recipe.train,
        inputs.examples,
        inputs.plan,
        accelerator=accelerator,
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
        tokens_per_second=whole.tokens / (pace * sum(costs)),
        peak_bytes=peak_bytes(loaded.device),
    )
