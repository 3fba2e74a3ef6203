"""How a model makes its logits is found by trying, and not believed where it is another way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.families import DENSE, HYBRID, MOE, family_model
from weitune.data.conversation import Example, Span
from weitune.data.pad import pad
from weitune.model.batch import PaddedTensors, to_tensors
from weitune.model.capabilities import probe
from weitune.model.fast.loss import LogitForm
from weitune.model.logit_form import read_logit_form
from weitune.model.supervised import SupervisedModel, hidden_states

CAPPED = {"gemma2", "gemma3n_text"}
SCALED = {"falcon_h1": 0.5}
"""As tests/families.py sets them."""
SHAPED: list[tuple[str, dict[str, Any], LogitForm]] = [
    ("gemma2", {"final_logit_softcapping": 7.3}, LogitForm(cap=7.3)),
    ("gemma4_text", {"final_logit_softcapping": 30.0}, LogitForm(cap=30.0)),
    ("granite", {"logits_scaling": 6.0}, LogitForm(1 / 6)),
    ("cohere2", {"logit_scale": 0.0625}, LogitForm(0.0625)),
    ("falcon_h1", {"lm_head_multiplier": 0.0195}, LogitForm(0.0195)),
]


def batch() -> PaddedTensors:
    texts = (3, 1, 4, 1, 5, 9, 2, 6), (5, 3, 5, 8, 9)
    made = to_tensors(pad([Example(text, (Span(1, len(text)),)) for text in texts]), torch.device("cpu"))
    assert isinstance(made, PaddedTensors)
    return made


def form_of(model: Any, tolerance: float = 1e-4) -> LogitForm | None:
    with torch.no_grad():
        return read_logit_form(model, hidden_states(model, batch()), tolerance)


@pytest.mark.parametrize("family", {**DENSE, **MOE, **HYBRID})
def test_of_every_family(family: str) -> None:
    expected = LogitForm(SCALED.get(family, 1.0), cap=30.0 if family in CAPPED else None)
    assert form_of(family_model(family)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "settings", "expected"), SHAPED)
def test_scales_and_caps(family: str, settings: dict[str, Any], expected: LogitForm, dtype: torch.dtype) -> None:
    model = family_model(family, **settings).to(dtype)
    assert probe(model).head == expected


@pytest.mark.parametrize(("family", "settings", "form"), SHAPED)
def test_the_loss_is_that_of_the_models_own_logits(family: str, settings: dict[str, Any], form: LogitForm) -> None:
    model = family_model(family, **settings).double()
    model.requires_grad_(False)
    norm = model.get_decoder().layers[0].get_submodule("mlp" if family != "falcon_h1" else "feed_forward")
    for parameter in norm.parameters():
        parameter.requires_grad_()
    found = []
    for head in (form, None):
        loss = SupervisedModel(model, head=head)(batch())
        found.append([loss.detach(), *torch.autograd.grad(loss, list(norm.parameters()))])
    for ours, theirs in zip(*found, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        lambda logits: logits.clamp(max=30),
        lambda logits: logits + 1,
        lambda logits: logits / (1 + logits.abs() / 30),  # bends another way below 30
        lambda logits: logits.where(logits < logits.max(), float("nan")),
        lambda logits: logits * torch.linspace(1, 1.1, logits.shape[-1]),
    ],
)
def test_what_logits_are_made_in_another_way_is_left_to_the_model(other: Any) -> None:
    model = family_model("llama")

    def change(_module: Any, _inputs: Any, output: Any) -> Any:
        output.logits = other(output.logits)
        return output

    model.register_forward_hook(change)
    assert form_of(model) is None
    assert form_of(model, 5e-3) is None
