"""What a run records of its targets stands when it goes on, whatever the recipe's words mean by then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.tiny import save_tiny
from weitune import Recipe, train
from weitune.model.lora.linear_layers import LinearLayers
from weitune.recipe.load import build_recipe
from weitune.recipe.schema import PROJECTIONS
from weitune.run.checkpoint import Checkpoint
from weitune.training.resume.resume_state import ResumeState
from weitune.training.run import resume

RECORD = {"target_modules": ["q_proj"], "layers_to_transform": None, "target_parameters": None}


def recipe_with(*targets: str) -> Recipe:
    return build_recipe({"model": "m", "data": ["d.json"], "lora": {"target_modules": list(targets)}})


def state_of(recipe: Recipe, folder: Path, state: Any, environment: Any) -> ResumeState:
    return ResumeState(Checkpoint(folder, 1), [], environment, state, recipe)


def test_the_checkpoint_s_record_comes_first_then_the_run_s(tmp_path: Path) -> None:
    other = {**RECORD, "target_modules": ["k_proj"]}
    recipe = recipe_with("auto")
    assert state_of(recipe, tmp_path, {"targets": RECORD}, {"targets": other}).targets == RECORD
    assert state_of(recipe, tmp_path, {}, {"targets": other}).targets == other
    assert state_of(recipe, tmp_path, {}, {}).targets is None


def test_what_all_linear_meant_in_0_1_0_is_read_from_the_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": ["mlp.gate.wg"]}))
    found = state_of(recipe_with("all-linear"), tmp_path, {}, {}).targets
    assert found is not None
    assert found["target_modules"] == ["mlp.gate.wg"]
    assert state_of(recipe_with("q_proj"), tmp_path, {}, {}).targets is None


def test_a_run_with_the_seven_names_that_were_the_default_goes_on_by_a_recipe_without_them(tmp_path: Path) -> None:
    seven, auto = recipe_with(*PROJECTIONS), recipe_with("auto")
    assert state_of(seven, tmp_path, {}, {}).keeping_choices(auto) == seven
    assert state_of(recipe_with("q_proj"), tmp_path, {}, {}).keeping_choices(auto) == auto
    assert state_of(auto, tmp_path, {}, {}).keeping_choices(seven) == seven
    named = recipe_with("q_proj")
    assert state_of(seven, tmp_path, {}, {}).keeping_choices(named) == named


def test_a_run_goes_on_with_what_it_adapted_when_auto_means_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": "Who are you?", "output": "I am here."}] * 4))
    settings = {"max_steps": 1, "batch_size": 2, "precision": "fp32"}
    run = tmp_path / "run"
    train(
        build_recipe({"model": str(save_tiny(tmp_path / "model")), "data": [str(rows)], "train": settings},
                     {"output": str(run)}),
        device="cpu",
    )  # fmt: skip
    assert json.loads((run / "environment.json").read_text())["targets"]["target_modules"] == list(PROJECTIONS)
    assert json.loads((run / "checkpoint-1" / "state.json").read_text())["targets"]["target_modules"] == [*PROJECTIONS]
    monkeypatch.setattr(LinearLayers, "reasons", lambda self: dict.fromkeys(self.names_in_decoder(), "router"))
    resume(run, device="cpu", overrides={"train.max_steps": 2})
    saved = [
        set(safe_open(run / name / "adapter_model.safetensors", "pt").keys())
        for name in ("checkpoint-1", "checkpoint-2", "adapter")
    ]
    assert saved[0] == saved[1] == saved[2]
    assert len(saved[0]) == 2 * 2 * len(PROJECTIONS)
