"""How long a run will take on this machine: a few steps are made for real, and thrown away.

The time of a step is taken to grow with its floating-point operations, which are known for every step that was looked
at; so short and long steps are weighed as they come, not as the measured ones happened to be.
"""

from __future__ import annotations

from dataclasses import dataclass

from weitune.forecast.device_memory import peak_bytes
from weitune.forecast.meta_model import MetaModel
from weitune.forecast.run_forecast import step_costs
from weitune.forecast.workload import Workload
from weitune.model.load.weights import load_model
from weitune.progress import Progress
from weitune.training.build import make_loop, make_trainable
from weitune.training.distributed.processes import make_accelerator
from weitune.training.inputs import RunInputs
from weitune.training.loop import StepRecord

MEASURED_STEPS = 2
"""Besides a first one that warms up."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What was measured, and what follows for the whole run."""

    step_seconds: float
    """Mean of the run's steps, as forecast."""
    seconds: float
    """Of all its steps; loading, evaluations and checkpoints come on top."""
    tokens_per_second: float
    peak_bytes: int


class _Stopwatch:
    """Keeps records, and ends the loop when there are enough."""

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
    parts: RunInputs,
    meta: MetaModel,
    *,
    device: str | None = None,
    progress: Progress | None = None,
) -> Timing:
    """Load the model, train three steps and forget them. Raises what training raises."""
    recipe = parts.recipe
    loaded = load_model(
        recipe.model,
        precision=recipe.train.precision if recipe.adapter else "fp32",
        storage=recipe.train.storage,
        hub=recipe.hub,
        revision=recipe.revision,
        device=device,
    )
    trainable = make_trainable(loaded, recipe.adapter, seed=recipe.train.seed, base=recipe.model, fresh=False)
    accelerator = make_accelerator(loaded.device)
    loop = make_loop(
        trainable, recipe.train, parts.examples, parts.plan, accelerator=accelerator, longest=parts.longest
    )
    watch = _Stopwatch(progress)
    loop.run(0, watch)
    counted = watch.records[1:] or watch.records
    first = Workload.of(
        parts.examples, parts.plan, loop.layout, loop.memory.micro_tokens, steps=[r.step - 1 for r in counted]
    )
    whole = Workload.of(parts.examples, parts.plan, loop.layout, loop.memory.micro_tokens)
    pace = sum(record.step_seconds for record in counted) / sum(step_costs(meta, first))
    costs = step_costs(meta, whole)
    step_seconds = pace * sum(costs) / len(costs)
    return Timing(
        step_seconds=step_seconds,
        seconds=step_seconds * parts.plan.steps,
        tokens_per_second=whole.tokens / (pace * sum(costs)),
        peak_bytes=peak_bytes(loaded.device),
    )
