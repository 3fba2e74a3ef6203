"""Every method against TRL, whose values :mod:`bench.preference_oracle` has written: loss, gradient, 20 steps."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from bench.preference_cases import (
    ALPHA,
    METHODS,
    ORACLE,
    RANK,
    RATES,
    STEPS,
    TARGETS,
    fill_adapter,
    judged,
    pairs,
    sketched,
    tiny_model,
)
from tests.conftest import folder_of_test_model
from weitune.data.conversation import Example, Span
from weitune.data.pack_groups import pack_groups
from weitune.data.preference.mismatched import mismatched
from weitune.data.preference.values import Group
from weitune.model.batch import TensorBatch, to_tensors
from weitune.model.fast.attention import use_tree_attention
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.lora.adapter import attach_adapter
from weitune.model.supervised import SupervisedModel
from weitune.recipe.preference import Preference
from weitune.recipe.schema import Lora
from weitune.training.objective.preference_loss import PreferenceLoss
from weitune.training.objective.preference_objective import Coefficients
from weitune.training.preference.methods import kto_shift

CPU = torch.device("cpu")
TRL = json.loads(ORACLE.read_text())


def example(prompt: list[int], answer: list[int]) -> Example:
    return Example((*prompt, *answer), (Span(len(prompt), len(prompt) + len(answer)),))


def groups_of(method: str) -> list[Group]:
    if method == "kto":
        return [Group((example(j.prompt, j.answer),), (j.liked,)) for j in judged()]
    return [Group((example(p.prompt, p.chosen), example(p.prompt, p.rejected)), (True, False)) for p in pairs()]


@dataclass
class Training:
    """AdamW on one batch of groups, as the oracle does it."""

    preference: Preference
    groups: list[Group]
    module: SupervisedModel
    adapter: list[tuple[str, torch.nn.Parameter]]
    optimizer: torch.optim.Optimizer
    others: list[Group]
    """The mismatched groups of KTO"""
    others_before: torch.Tensor

    @classmethod
    def start(cls, base: Any, case: str, rate: float) -> Training:
        preference = Preference(**{"method": case, **METHODS[case]})
        adapted = attach_adapter(base, Lora(r=RANK, alpha=ALPHA, dropout=0, target_modules=TARGETS), seed=1, base="x")
        use_tree_attention(base)
        blocks = BlockDecoder.from_model(base)
        assert blocks is not None
        module = SupervisedModel(base, blocks=blocks, objective=PreferenceLoss(preference))
        adapter = [(name, p) for name, p in adapted.named_parameters() if p.requires_grad]
        groups = groups_of(preference.method)
        others = mismatched(groups, 100) if preference.method == "kto" else groups
        before = sums(module, groups).tolist()  # B is 0 still
        if preference.has_reference:
            width = len(groups[0].answers)
            groups = [replace(g, reference=tuple(before[k * width :][:width])) for k, g in enumerate(groups)]
        others_before = sums(module, others)
        fill_adapter(adapted)
        optimizer = torch.optim.AdamW([p for _, p in adapter], lr=rate, weight_decay=0.0)
        return cls(preference, groups, module, adapter, optimizer, others, others_before)

    def batch(self) -> TensorBatch:
        laid = pack_groups(self.groups)
        assert laid.answers is not None
        shift = float(kto_shift(sums(self.module, self.others) - self.others_before))
        coefficients = Coefficients.of(self.preference, self.groups, shift)
        return to_tensors(replace(laid, answers=coefficients.given_to(laid.answers, self.groups)), CPU)

    def step(self) -> float:
        """Return the loss of the next step; its gradient stays in the parameters."""
        loss = self.module(self.batch()).loss
        self.optimizer.zero_grad()
        loss.backward()
        return float(loss.detach())


def sums(module: SupervisedModel, groups: list[Group]) -> torch.Tensor:
    with torch.no_grad():
        return module(to_tensors(pack_groups(groups), CPU)).sums  # type: ignore[no-any-return]


def base_model(name: str) -> Any:
    if name == "tiny":
        return tiny_model()
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder_of_test_model(name), dtype=torch.float32)


def check_against_trl(name: str, case: str) -> None:
    expected, training = TRL[name][case], Training.start(base_model(name), case, RATES[name])
    losses = [training.step()]
    assert losses[0] == pytest.approx(expected["losses"][0], rel=1e-5)
    found, wanted = (torch.tensor(x, dtype=torch.float64) for x in (
        sketched((name, p.grad) for name, p in training.adapter), expected["gradient"]
    ))  # fmt: skip
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()
    for _ in range(1, STEPS):
        training.optimizer.step()
        losses.append(training.step())
    assert losses == pytest.approx(expected["losses"], rel=1e-4)


@pytest.mark.parametrize("case", METHODS)
def test_losses_gradients_and_twenty_steps_are_those_of_trl(case: str) -> None:
    check_against_trl("tiny", case)


@pytest.mark.slow
@pytest.mark.parametrize("case", METHODS)
def test_those_of_a_real_model_are_too(case: str) -> None:
    check_against_trl("smollm2-135m", case)
