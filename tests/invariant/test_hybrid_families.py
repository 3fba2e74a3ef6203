"""Models with recurrent layers: a batch of answers is its rows, and two processes learn what one learns."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import HYBRID, family_model, template_of
from tests.faults.test_several_processes import adapter, finish, weitune
from tests.generate.test_engine import QUESTIONS, argmax_loop, conversation, engine_of
from tests.invariant.test_experts import recipe_of
from weitune import train
from weitune.generate.sampling import Sampling
from weitune.recipe.load import dump_recipe

RECURRENT = (
    "qwen3_5_text", "qwen3_next", "lfm2", "falcon_h1", "granitemoehybrid", "nemotron_h", "nemotron_h_dense",
)  # fmt: skip
"""All but nemotron_h, which its own modules train, have several examples in a row."""


@pytest.mark.parametrize("family", HYBRID)
def test_padding_of_a_batch_leaves_no_trace_in_a_state(family: str) -> None:
    engine = engine_of(family_model(family), template_of(family))
    asked, sampling = [conversation(question) for question in QUESTIONS], Sampling(max_new_tokens=12)
    assert engine.answers(asked, sampling) == [engine.answer(each, sampling) for each in asked]


@pytest.mark.parametrize("family", HYBRID)
def test_a_state_is_carried_from_step_to_step(family: str) -> None:
    """As if the whole conversation were read again for every token."""
    engine = engine_of(family_model(family), template_of(family))
    asked = conversation(QUESTIONS[1])
    expected = argmax_loop(engine.model, engine.prompt(asked), 12)
    assert not engine.stop_tokens.intersection(expected)
    assert list(engine.answer(asked, Sampling(max_new_tokens=12)).tokens) == expected


@pytest.mark.slow
@pytest.mark.parametrize("family", RECURRENT)
def test_two_processes_learn_the_same_as_one(family: str, tmp_path: Path) -> None:
    lora, keys = {"experts": False, "dropout": 0.0}, {"precision": "fp32", "epochs": 1}
    alone = train(recipe_of(tmp_path / "a", family, lora, **keys), device="cpu")
    recipe = recipe_of(tmp_path / "b", family, lora, **keys)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    finish(weitune("--devices", "2", str(tmp_path / "recipe.yaml")))
    ours, theirs = (adapter(run) for run in (tmp_path / "b" / "run", alone.path))
    assert (ours - theirs).norm() / theirs.norm() < 1e-5
