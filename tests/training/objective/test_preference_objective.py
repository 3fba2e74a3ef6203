"""Preference losses in the loop: those of the papers over the whole step, however it is divided."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from tests.data.preference.groups import answer
from tests.tiny import tiny_model
from tests.training.loops import Recorder, fit, make_loop
from weitune.data.layout import SEPARATE_GROUPS, SHARED_GROUPS
from weitune.data.preference.mismatched import mismatched
from weitune.data.preference.reference import MISMATCHED, TRAINED, AnswerSums, Reference, ReferencedGroups
from weitune.data.preference.values import Group
from weitune.data.schedule import Plan
from weitune.model.lora.adapter import attach_adapter
from weitune.recipe.preference import Method, Preference
from weitune.recipe.schema import Lora, Train
from weitune.training.loop import StepRecord
from weitune.training.preference.methods import Scored, losses, sft_weight

METHODS: tuple[Method, ...] = get_args(Method)
BETA = 0.7
TRAIN = Train(batch_size=4, epochs=2, learning_rate=3e-3, seed=5)
MAX_LENGTH = 512


def drawn_groups(count: int, *, pairs: bool, seed: int = 0) -> list[Group]:
    """Return groups that share a system prompt, sometimes a question, and have weights of their own."""
    draw = random.Random(seed)

    def words(n: int) -> list[int]:
        return [draw.randrange(400) for _ in range(n)]

    system, questions = words(5), [words(draw.randint(2, 7)) for _ in range(count // 2 + 1)]
    made = []
    for _ in range(count):
        prompt, weight = system + draw.choice(questions), draw.choice([0.5, 1.0])
        answers = [answer(prompt, words(draw.randint(1, 9))) for _ in range(1 + pairs)]
        liked = (True, False) if pairs else (draw.random() < 0.5,)
        made.append(Group(tuple(answers), liked, weight))
    return made


def adapted(seed: int = 1, *, moved: bool = False) -> Any:
    """Return a model with an adapter; one that was ``moved`` is not at its start any more."""
    model = attach_adapter(tiny_model(), Lora(dropout=0.0), seed=seed, base="tiny")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if moved and "lora_B" in name:
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return model


def alone(model: Any, groups: Sequence[Group]) -> torch.Tensor:
    """Return the log-probability of every answer of ``groups``, each computed alone."""
    model = model.get_base_model()
    found = []
    with torch.no_grad():
        for own in chain.from_iterable(group.answers for group in groups):
            logits = model(input_ids=torch.tensor([own.input_ids]), use_cache=False).logits[0].double()
            log_probs = torch.log_softmax(logits, -1)
            found.append(sum(log_probs[depth - 1, token] for depth, token, _ in own.predictions()))
    return torch.stack(found)  # type: ignore[arg-type]


def referenced(groups: Sequence[Group], plan: Plan, model: Any) -> tuple[list[Group], Reference]:
    """Return ``groups`` with their reference, of ``model``, computed one answer at a time."""
    own = AnswerSums.of_groups(groups, alone(model, groups).numpy())
    others = [group for k in range(plan.steps) for group in mismatched([groups[i] for i in plan.step(k)], MAX_LENGTH)]
    parts = {TRAINED: own}
    if all(len(group.answers) == 1 for group in groups):
        parts[MISMATCHED] = AnswerSums.of_groups(others, alone(model, others).numpy())

    class Set(list[Group]):
        lengths = supervised = np.zeros(len(groups), np.int32)

        def digest(self) -> str:
            return ""

    joined = ReferencedGroups(Set(groups), own)
    return [joined[i] for i in range(len(groups))], Reference(parts)


def setting(method: Method, *, moved: bool = True) -> tuple[Preference, Plan, list[Group], Reference | None]:
    preference = Preference(method=method, beta=BETA)
    groups = drawn_groups(9, pairs=method != "kto")
    plan = Plan(len(groups), TRAIN.batch_size, TRAIN.epochs, TRAIN.seed)
    if not preference.has_reference:
        return preference, plan, groups, None
    return preference, plan, *referenced(groups, plan, adapted())


def by_formula(preference: Preference, step: Sequence[Group], model: Any, shift: float) -> float:
    """Return the loss of a step from answers that are computed alone: one sum, divided once."""
    sums = alone(model, step)
    every = [(own, liked, group) for group in step for own, liked in zip(group.answers, group.liked, strict=True)]
    lengths = torch.tensor([float(own.supervised) for own, *_ in every], dtype=torch.float64)
    liked = torch.tensor([each for _, each, _ in every])
    reference = torch.tensor(list(chain.from_iterable(g.reference or (0.0,) * len(g.answers) for g in step)))
    terms = losses(preference, Scored(sums, lengths, reference), liked, torch.tensor(shift))
    weights = torch.tensor([group.weight for group in step], dtype=torch.float64)
    total = float((weights * terms).sum() / weights.sum())
    own_weights = torch.tensor([group.weight for *_, group in every], dtype=torch.float64) * liked
    if own := sft_weight(preference):
        total -= own * float((own_weights * sums).sum() / (own_weights * lengths).sum())
    return total


@pytest.mark.parametrize("method", METHODS)
def test_a_step_has_the_loss_of_the_formula(method: Method) -> None:
    preference, plan, groups, reference = setting(method)
    model = adapted(moved=True)
    step = [groups[int(i)] for i in plan.step(0)]
    others, shift = mismatched(step, MAX_LENGTH), 0.0
    if reference is not None and method == "kto":
        gained = alone(model, others).numpy() - reference.parts[MISMATCHED].sums[: len(others)]
        shift = max(0.0, float(gained.mean()))
    expected = by_formula(preference, step, model, shift)
    watcher = Recorder(stop_after=1)
    make_loop(
        model, groups, plan, TRAIN, layout=SHARED_GROUPS, preference=preference, reference=reference
    ).run(0, watcher)  # fmt: skip
    assert watcher.records[0].loss == pytest.approx(expected, rel=1e-5)
    if method == "kto":
        assert watcher.records[0].figures["kl"] == pytest.approx(shift, abs=1e-5)


def ways(method: Method) -> Iterator[list[StepRecord]]:
    """Yield the records of whole runs, divided into micro-batches in other ways, shared or padded."""
    preference, plan, groups, reference = setting(method)
    for micro_tokens, layout in ((4096, SHARED_GROUPS), (40, SHARED_GROUPS), (90, SEPARATE_GROUPS)):
        yield fit(
            adapted(), groups, plan, TRAIN, layout=layout, micro_tokens=micro_tokens, preference=preference,
            reference=reference,
        )  # fmt: skip


def _without(record: StepRecord, names: set[str]) -> dict[str, float]:
    return {name: value for name, value in record.figures.items() if name not in names}


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_and_padding_change_nothing(method: Method) -> None:
    whole, *others = ways(method)
    assert whole[-1].step == 6
    for other in others:
        for mine, theirs in zip(whole, other, strict=True):
            assert theirs.loss == pytest.approx(mine.loss, rel=1e-5, abs=1e-5)
            assert theirs.grad_norm == pytest.approx(mine.grad_norm, rel=1e-4, abs=1e-5)
            unsure = {"rewards/accuracies"} if mine.step == 1 else set()  # all rewards are 0 but for rounding
            assert _without(theirs, unsure) == pytest.approx(_without(mine, unsure), rel=1e-4, abs=1e-4)


def test_the_first_loss_of_dpo_is_ln_2() -> None:
    preference, plan, groups, reference = setting("dpo")
    watcher = Recorder(stop_after=1)
    loop = make_loop(adapted(), groups, plan, TRAIN, layout=SHARED_GROUPS, preference=preference, reference=reference)
    loop.run(0, watcher)
    assert watcher.records[0].loss == pytest.approx(math.log(2), abs=1e-6)
    assert watcher.records[0].figures["rewards/margins"] == pytest.approx(0.0, abs=1e-5)


def test_what_is_learned_is_seen_in_the_figures() -> None:
    preference, plan, groups, reference = setting("dpo")
    plan = replace(plan, epochs=10)
    records = fit(adapted(), groups, plan, TRAIN, layout=SHARED_GROUPS, preference=preference, reference=reference)
    last = records[-1].figures
    assert records[-1].loss < 0.5 * records[0].loss
    assert last["rewards/accuracies"] == 1.0
    assert last["rewards/margins"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"])
    assert last["rewards/margins"] > 0
    gain = records[-1].figures["logps/chosen_gain"]
    assert last["rewards/chosen"] == pytest.approx(BETA * gain)


def test_copies_count_as_often_as_they_are_there() -> None:
    """A group twice is a group of twice the weight."""
    preference = Preference(method="cpo", beta=BETA)
    groups = drawn_groups(3, pairs=True)
    twice = [*groups, groups[1]]
    heavier = [groups[0], replace(groups[1], weight=2 * groups[1].weight), groups[2]]
    found = [
        fit(
            copy.deepcopy(adapted(moved=True)), each, Plan(len(each), 4, 1, 0), TRAIN, layout=SHARED_GROUPS,
            preference=preference,
        )[0]
        for each in (twice, heavier)
    ]  # fmt: skip
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-6)
    assert found[0].grad_norm == pytest.approx(found[1].grad_norm, rel=1e-5)


def test_a_step_of_one_judged_group_has_no_mismatched_answer() -> None:
    groups = drawn_groups(3, pairs=False)
    plan = Plan(3, 2, 1, 0)
    own, reference = referenced(groups, plan, adapted())
    records = fit(
        adapted(moved=True), own, plan, TRAIN, layout=SHARED_GROUPS, preference=Preference(method="kto"),
        reference=reference,
    )  # fmt: skip
    assert records[0].figures["kl"] > 0 or math.isfinite(records[0].loss)
    assert records[1].figures["kl"] == 0
