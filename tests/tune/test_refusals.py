"""What `--also` cannot compare is refused before a model is loaded, and no folder is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import Inputs, make_inputs
from weitune import cli
from weitune.errors import RecipeError
from weitune.recipe.load import build_recipe
from weitune.tune.search import epochs_cut_off
from weitune.tune.tune import View, tune

KEYS: dict[str, Any] = {"validation": 0.3, "train.batch_size": 2, "train.epochs": 4}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("refusals") / "inputs")


@pytest.mark.parametrize(
    ("keys", "also", "said"),
    [
        ({"lora": "none"}, ["r"], "lora: none"),
        ({"lora.init_from": "somewhere"}, ["batch_size", "r"], r"lora\.init_from"),
        ({"train.max_steps": 7}, ["epochs"], r"train\.max_steps 7"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    keys: dict[str, Any], also: list[str], said: str, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("weitune.tune.tune.load_base")
    with pytest.raises(RecipeError, match=said):
        tune(inputs.recipe(Path("unused"), **{**KEYS, **keys}), tmp_path / "search", also=also, device="cpu")
    assert not (tmp_path / "search").exists()


def test_trials_that_would_learn_nothing_are_refused_and_short_ones_noted(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weitune.tune.tune.load_base", None)  # what would come next
    warm = inputs.recipe(Path("unused"), **KEYS, **{"train.warmup_ratio": 0.1})
    with pytest.raises(RecipeError, match=r"all 1 steps of a trial"):
        tune(warm, tmp_path / "warm", budget=0.05, device="cpu")
    assert not (tmp_path / "warm").exists()
    told: list[str] = []
    view = View()
    monkeypatch.setattr(view, "say", told.append)
    with pytest.raises(TypeError):
        tune(inputs.recipe(Path("unused"), **KEYS), tmp_path / "short", budget=0.05, view=view, device="cpu")
    assert any("the shortest trial has 1 steps" in line for line in told)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_budget_is_a_finite_number(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", "demo", "--budget", value]) == 2
    assert "finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("most", "also", "expected"),
    [
        (None, ["epochs"], False),
        (100, ["epochs"], True),  # half of the 4 epochs: 100 steps of 2
        (101, ["epochs"], False),
        (100, ["epochs", "batch_size"], False),
        (50, ["epochs", "batch_size"], True),
    ],
)
def test_epochs_are_cut_off_if_the_fewest_are(most: int | None, also: list[str], expected: bool) -> None:
    train = {"batch_size": 2, "epochs": 4, "max_steps": most}
    assert epochs_cut_off(build_recipe({"model": "m", "data": "d", "train": train}), 100, also) is expected
