"""`best.yaml` and the page say what a search has put into the recipe, and what of it took no part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import Inputs, make_inputs
from weitune.errors import Interrupted
from weitune.progress import Progress
from weitune.recipe.load import load_recipe
from weitune.training.signals import StopRequest
from weitune.tune.search import Trial
from weitune.tune.tune import View, resume, tune

KEYS: dict[str, Any] = {"train.batch_size": 2, "train.epochs": 4}
KEEP, HELD_OUT = "keep takes no part", "validation 0.05 is the search's"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("reasons") / "inputs")


class Listening(View):
    """Keeps what is said, and stops the search in its first trial if it is given a ``stop``."""

    def __init__(self, stop: StopRequest | None = None) -> None:
        self.lines: list[str] = []
        self.stop = stop

    def say(self, line: str) -> None:
        self.lines.append(line)

    def trying(self, trial: Trial, number: int, trials: int) -> Progress | None:
        if self.stop is not None:
            self.stop.stop("a test")
        return None


def comments(folder: Path) -> str:
    lines = (folder / "best.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def test_rows_that_the_search_holds_out_are_a_reason(inputs: Inputs, tmp_path: Path) -> None:
    """Also if it was stopped: the recipe in its folder has them by then."""
    stop = StopRequest()
    with pytest.raises(Interrupted):
        tune(inputs.recipe(tmp_path, **KEYS), tmp_path / "a", budget=0.3, device="cpu", view=Listening(stop), stop=stop)
    view = Listening()
    resume(tmp_path / "a", device="cpu", view=view)
    assert load_recipe(str(tmp_path / "a" / "best.yaml")).validation == 0.05
    assert HELD_OUT in comments(tmp_path / "a")
    assert HELD_OUT in (tmp_path / "a" / "tune.html").read_text(encoding="utf-8").replace("&#x27;", "'")
    assert KEEP not in comments(tmp_path / "a") + "".join(view.lines)


def test_keep_is_said_to_take_no_part(inputs: Inputs, tmp_path: Path) -> None:
    view, recipe = Listening(), inputs.recipe(tmp_path, **KEYS, validation=0.3, keep=0.1)
    tune(recipe, tmp_path / "search", budget=0.3, device="cpu", view=view)
    assert sum(KEEP in line for line in view.lines) == 1
    assert KEEP in comments(tmp_path / "search")
    assert HELD_OUT not in comments(tmp_path / "search")
    assert load_recipe(str(tmp_path / "search" / "best.yaml")).keep == recipe.keep
