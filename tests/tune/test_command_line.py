"""`weitune tune` on the command line: which folder is the search's, and what goes with --resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.faults.runs import Inputs, make_inputs
from weitune import cli

KEYS = {"validation": 0.3, "train.batch_size": 2, "train.epochs": 4}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("tune") / "inputs")


@pytest.fixture
def recipe(inputs: Inputs, tmp_path: Path) -> Path:
    """A recipe whose own run goes to `own`."""
    path = tmp_path / "recipe.yaml"
    tree = inputs.recipe(tmp_path / "own", **KEYS).model_dump(mode="json", exclude_unset=True)
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("named", [True, False])
def test_the_recipes_output_stays_that_of_its_run(
    named: bool, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    option = ["--output", "search"] if named else []
    assert cli.main(["tune", str(recipe), *option, "--budget", "0.3", "--device", "cpu"]) == 0
    (best,) = tmp_path.rglob("best.yaml")
    assert best.parent == tmp_path / "search" if named else best.parent.parent == tmp_path / "tunes"
    assert yaml.safe_load(best.read_text(encoding="utf-8"))["output"] == str(tmp_path / "own")
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("option", [["--budget", "3"], ["--budget", "1.0"], ["--also", "r"], ["--output", "x"]])
def test_a_search_goes_on_as_it_began(option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", "--resume", str(tmp_path), *option]) == 2
    assert "give no others" in capsys.readouterr().err
