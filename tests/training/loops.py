"""Run the training loop on values made in a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator

from weitune.data.layout import SEPARATE, SEPARATE_GROUPS, SHARED, Layout
from weitune.data.preference.reference import Reference
from weitune.data.preference.values import Item
from weitune.data.schedule import Plan
from weitune.forecast.device_memory import MemoryPlan
from weitune.model.capabilities import probe
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.supervised import SupervisedModel
from weitune.recipe.preference import Preference
from weitune.recipe.schema import Recompute, Train
from weitune.training.loop import Loop, StepRecord
from weitune.training.objective.preference_loss import PreferenceLoss
from weitune.training.objective.preference_objective import PreferenceObjective
from weitune.training.objective.step_objective import SUPERVISED
from weitune.training.optim import make_optimizer
from weitune.training.passes import Passes
from weitune.training.preference.answer_meter import AnswerMeter
from weitune.training.preference.preferences import Preferences


class Recorder:
    """A watcher that keeps every record."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.records: list[StepRecord] = []
        self.failures: list[StepRecord] = []
        self._stop_after = stop_after

    def stepped(self, record: StepRecord) -> bool:
        self.records.append(record)
        return record.step != self._stop_after

    def failed(self, record: StepRecord) -> None:
        self.failures.append(record)


def make_loop(
    adapted: Any, examples: Sequence[Item], plan: Plan, train: Train, *, layout: Layout = SHARED,
    micro_tokens: int = 4096, fast: bool = True, recompute: Recompute = "none", preference: Preference | None = None,
    reference: Reference | None = None,
) -> Loop:  # fmt: skip
    model = adapted.get_base_model()
    abilities = probe(model)
    assert abilities.shares_rows, abilities.why_not
    if layout in {SEPARATE, SEPARATE_GROUPS}:
        model.set_attn_implementation("sdpa")
    supervised = SupervisedModel(
        model,
        head=abilities.head,
        blocks=BlockDecoder.from_model(model) if abilities.plain_blocks and fast else None,
        recompute=recompute,
        objective=preference and PreferenceLoss(preference),
    )
    optimizer, accelerator = make_optimizer(adapted.named_parameters(), train), Accelerator(cpu=True)
    meter = AnswerMeter(supervised, layout, accelerator)
    return Loop(
        model=supervised,
        optimizer=optimizer,
        accelerator=accelerator,
        passes=Passes(supervised, optimizer, accelerator),
        examples=examples,
        plan=plan,
        layout=layout,
        train=train,
        memory=MemoryPlan(micro_tokens, recompute),
        objective=PreferenceObjective(Preferences(preference, 512, reference), plan, meter)
        if preference
        else SUPERVISED,
    )


def fit(adapted: Any, examples: Sequence[Item], plan: Plan, train: Train, **options: Any) -> list[StepRecord]:
    """Train to the plan's end and return every step's record."""
    watcher = Recorder()
    make_loop(adapted, examples, plan, train, **options).run(0, watcher)
    return watcher.records
