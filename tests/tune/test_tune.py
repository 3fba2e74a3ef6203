"""A search on a tiny model: it finds, writes, stops anywhere and goes on to the same bits."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import Inputs, make_inputs
from weitune import cli
from weitune.errors import Interrupted, RecipeError, RunError
from weitune.files import publish as publishing
from weitune.forecast.memory_estimate import LEAST_TOKENS
from weitune.progress import Progress
from weitune.recipe.load import load_recipe
from weitune.recipe.schema import Recipe
from weitune.run.names import EVENTS, RECIPE, STOP
from weitune.training.build import make_loop
from weitune.training.inputs import collect_inputs
from weitune.training.loop import Loop
from weitune.training.signals import StopRequest
from weitune.tune import folder as folders
from weitune.tune.folder import SETTINGS, Settings, create, outcomes
from weitune.tune.search import Trial
from weitune.tune.trials import Outcome, Trials
from weitune.tune.tune import Found, View, resume, tune

KEYS: dict[str, Any] = {"validation": 0.3, "train.batch_size": 2, "train.epochs": 4}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("tune") / "inputs")


@pytest.fixture(scope="module")
def whole(inputs: Inputs) -> Found:
    return tune(inputs.recipe(Path("unused"), **KEYS), inputs.folder / "whole", device="cpu")


class StopAfter(View):
    """Asks for a stop after so many steps of all trials."""

    def __init__(self, steps: int, stop: StopRequest) -> None:
        self.left, self.stop = steps, stop

    def trying(self, trial: Trial, number: int, trials: int) -> Progress:
        return self.count

    def count(self, done: int, total: int | None) -> None:
        self.left -= 1
        if self.left == 0:
            self.stop.stop("a test")


def losses(folder: Path) -> list[tuple[Trial, float, tuple[float, ...]]]:
    return [(each.trial, each.loss, each.losses) for each in outcomes(folder)]


def test_the_recipe_found_is_the_best_of_the_last_rung(whole: Found, inputs: Inputs) -> None:
    last = max(each.trial.rung for each in whole.outcomes)
    best = min(each.loss for each in whole.outcomes if each.trial.rung == last)
    assert whole.loss <= best + 0.005
    text = (whole.folder / "best.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Found by `weitune tune`")
    found = load_recipe(str(whole.folder / "best.yaml"))
    expected = whole.best.applied(inputs.recipe(Path("unused"), **KEYS))
    watched = {"evaluate_every": found.train.evaluate_every, "patience": 2}
    assert found == expected.model_copy(update={"train": expected.train.model_copy(update=watched)})
    page = (whole.folder / "tune.html").read_text(encoding="utf-8")
    assert f"{whole.best.learning_rate:g}" in page


def test_every_trial_begins_afresh(whole: Found, inputs: Inputs, tmp_path: Path) -> None:
    """The first loss of every trial with the recipe's batch size is the same: nothing of other trials is left."""
    firsts = {each.losses[0] for each in whole.outcomes}
    assert len(firsts) == 1
    ranks = tune(inputs.recipe(tmp_path / "x", **KEYS), tmp_path / "ranks", also=["r"], device="cpu")
    assert {each.trial.candidate.r for each in ranks.outcomes} > {8}
    same = {each.trial: each.losses for each in whole.outcomes}
    for each in ranks.outcomes:
        assert each.losses[0] == pytest.approx(next(iter(firsts)), rel=1e-6)  # B is zero, whatever the rank
        if each.trial in same:
            assert each.losses == same[each.trial]


@pytest.mark.parametrize("seed", range(4))
def test_a_stopped_search_goes_on_to_the_same_bits(seed: int, whole: Found, inputs: Inputs, tmp_path: Path) -> None:
    draw = random.Random(seed)
    steps = sum(len(each.losses) for each in whole.outcomes)
    stop = StopRequest()
    folder = tmp_path / "stopped"
    recipe = inputs.recipe(Path("unused"), **KEYS)
    with pytest.raises(Interrupted, match="tune --resume"):
        tune(recipe, folder, view=StopAfter(draw.randrange(1, steps), stop), device="cpu", stop=stop)
    done = len(outcomes(folder))
    if draw.random() < 0.5:  # as a kill leaves it
        with (folder / "events.jsonl").open("ab") as file:
            file.write(b'{"event": "trial", "tri')
    view = Counting()
    found = resume(folder, view=view, device="cpu")
    assert view.trials == len(whole.outcomes) - done
    assert losses(folder) == losses(whole.folder)
    assert (found.best, found.loss) == (whole.best, whole.loss)
    assert (folder / "best.yaml").read_bytes() == (whole.folder / "best.yaml").read_bytes()


class Counting(View):
    def __init__(self) -> None:
        self.trials = 0

    def trying(self, trial: Trial, number: int, trials: int) -> Progress | None:
        self.trials += 1
        return None

    def tried(self, outcome: Outcome) -> None:
        assert outcome.losses


def test_rows_are_held_out_if_the_recipe_holds_none_out(inputs: Inputs, tmp_path: Path) -> None:
    recipe = inputs.recipe(Path("unused"), **{**KEYS, "validation": None})
    tune(recipe, tmp_path / "search", budget=0.3, device="cpu")
    assert load_recipe(str(tmp_path / "search" / "best.yaml")).validation == 0.05


def test_the_command_line(inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    tree = inputs.tree(tmp_path / "search", **KEYS)
    options = [
        part
        for key, value in tree.items()
        for part in (
            f"--{key}",
            json.dumps(value) if isinstance(value, float) else str(value[0] if isinstance(value, list) else value),
        )
    ]
    assert cli.main(["tune", *options, "--budget", "0.3", "--device", "cpu"]) == 0
    shown = capsys.readouterr().err
    assert "rung 1" in shown
    assert "best.yaml" in shown
    assert cli.main(["tune", *options, "--device", "cpu"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert cli.main(["tune", *options, "--also", "colour"]) == 2
    assert "colour" in capsys.readouterr().err
    assert cli.main(["tune", "--resume", str(tmp_path)]) == 2
    assert "holds no search" in capsys.readouterr().err
    assert not recipe.exists()


def test_other_data_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    data = tmp_path / "data.json"
    data.write_bytes(inputs.data.read_bytes())
    tune(inputs.recipe(Path("unused"), **KEYS, data=[str(data)]), folder, budget=0.3, device="cpu")
    rows = json.loads(data.read_text(encoding="utf-8"))
    data.write_text(json.dumps(rows[1:]), encoding="utf-8")
    with pytest.raises(RunError, match=r"data\.contents"):
        resume(folder, device="cpu")


def test_another_recipe_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    tune(inputs.recipe(Path("unused"), **KEYS), folder, budget=0.3, device="cpu")
    text = (folder / RECIPE).read_text(encoding="utf-8")
    (folder / RECIPE).write_text(text.replace("weight_decay: 0.0", "weight_decay: 0.1"), encoding="utf-8")
    with pytest.raises(RunError, match=r"train\.weight_decay"):
        resume(folder, device="cpu")
    (folder / RECIPE).write_text(text.replace("log_every: 10", "log_every: 1"), encoding="utf-8")
    resume(folder, device="cpu")  # decides no loss
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    settings["recipe"]["train"].pop("schedule")  # a version that did not know it yet
    (folder / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    resume(folder, device="cpu")
    del settings["recipe"]  # as older versions wrote it
    (folder / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    resume(folder, device="cpu")


def test_a_search_that_was_faster_keeps_its_folder(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = tmp_path / "search", inputs.recipe(Path("unused"), **KEYS)
    flush = publishing.flush_all

    def late(partial: Path) -> None:
        flush(partial)
        if not folder.exists():
            folder.mkdir()
            (folder / SETTINGS).write_text("the other's")

    monkeypatch.setattr(publishing, "flush_all", late)
    with pytest.raises(RunError, match="not empty"):
        create(folder, recipe, Settings([], 1.0, {}))
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(SETTINGS, "the other's")]
    assert list(tmp_path.iterdir()) == [folder]


def test_what_cannot_be_read_or_written_is_named(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "search"
    create(folder, inputs.recipe(Path("unused"), **KEYS), Settings([], 1.0, {}))
    (folder / EVENTS).write_text('{"event": "step"}\n')
    with pytest.raises(RunError, match=r"events\.jsonl' cannot be read"):
        outcomes(folder)
    (folder / EVENTS).unlink()
    with pytest.raises(RunError, match=r"events\.jsonl' cannot be read"):
        outcomes(folder)

    def full(contents: bytes, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "publish_bytes", full)
    with pytest.raises(RunError, match=r"best\.yaml' cannot be written"):
        folders.publish_found(folder, "", "")


def test_a_held_out_loss_that_is_not_finite_is_infinite(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trials, "_held_out_loss", lambda self, loop: float("nan"))
    with pytest.raises(RunError, match="finite loss"):
        tune(inputs.recipe(Path("unused"), **KEYS), tmp_path / "search", budget=0.3, device="cpu")
    assert not (tmp_path / "search" / "best.yaml").exists()
    assert "NaN" not in (tmp_path / "search" / EVENTS).read_text(encoding="utf-8")


def test_a_divided_base_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.shard"):
        tune(inputs.recipe(Path("unused"), **KEYS, **{"train.shard": True}), tmp_path / "search", device="cpu")
    assert not (tmp_path / "search").exists()


def test_ranks_of_adapters_taken_from_the_base_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    recipe = inputs.recipe(Path("unused"), **KEYS, **{"lora.init": "pissa"})
    with pytest.raises(RecipeError, match=r"lora\.init pissa"):
        tune(recipe, tmp_path / "search", also=["r"], device="cpu")
    assert not (tmp_path / "search").exists()


def test_a_folder_with_a_stop_file_is_empty(inputs: Inputs, tmp_path: Path) -> None:
    recipe, folder = inputs.recipe(Path("unused"), **KEYS), tmp_path / "search"
    folder.mkdir()
    (folder / STOP).touch()
    create(folder, recipe, Settings([], 1.0, {}))
    assert {path.name for path in folder.iterdir()} == {RECIPE, SETTINGS, EVENTS, STOP}
    with pytest.raises(RunError, match="not empty"):
        create(folder, recipe, Settings([], 1.0, {}))


def test_preferences_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="preference training"):
        tune(inputs.recipe(Path("unused"), **KEYS, preference="dpo"), tmp_path / "search", device="cpu")
    assert not (tmp_path / "search").exists()


def test_all_trials_are_computed_alike_whatever_memory_is_free(
    whole: Found, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The passes of a step are settled once, for the largest adapter, and kept when the search goes on."""
    free, plans = [1 << 40], set()

    def watched(*args: Any, **keys: Any) -> Loop:
        loop = make_loop(*args, **keys)
        plans.add(loop.memory)
        free[0] = 1  # from here on there is none
        return loop

    monkeypatch.setattr("weitune.training.trainable.free_bytes", lambda device: free[0])
    monkeypatch.setattr("weitune.tune.trials.make_loop", watched)
    folder, stop = tmp_path / "search", StopRequest()
    view = StopAfter(sum(len(each.losses) for each in whole.outcomes) // 2, stop)
    recipe = inputs.recipe(Path("unused"), **KEYS)
    with pytest.raises(Interrupted):
        tune(recipe, folder, view=view, device="cpu", stop=stop)
    recorded = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["environment"]
    assert len(plans) == 1
    resume(folder, device="cpu")
    assert {plan.micro_tokens for plan in plans} == {recorded["micro_tokens"]}
    assert recorded["micro_tokens"] > without_memory(recipe)
    assert (recorded["precision"], recorded["device"]) == ("float32", "cpu")
    assert losses(folder) == losses(whole.folder)


def without_memory(recipe: Recipe) -> int:
    """Return what ``train.micro_tokens: auto`` comes to where no memory is free."""
    return max(LEAST_TOKENS, collect_inputs(recipe, View()).longest)


def test_a_search_that_goes_on_keeps_its_precision_and_says_what_has_changed(inputs: Inputs, tmp_path: Path) -> None:
    folder, stop = tmp_path / "search", StopRequest()
    with pytest.raises(Interrupted):
        tune(inputs.recipe(Path("unused"), **KEYS), folder, view=StopAfter(9, stop), device="cpu", stop=stop)
    tree = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    tree["environment"] |= {"precision": "bfloat16", "processor": "another"}
    (folder / SETTINGS).write_text(json.dumps(tree), encoding="utf-8")
    view = Listening()
    found = resume(folder, view=view, device="cpu")
    assert "processor" in view.text
    expected = tune(inputs.recipe(Path("unused"), **{**KEYS, "train.precision": "bf16"}), tmp_path / "x", device="cpu")
    assert found.outcomes[-1].losses == expected.outcomes[-1].losses


def test_a_search_of_a_version_that_did_not_record_how_it_computes_goes_on(
    whole: Found, inputs: Inputs, tmp_path: Path
) -> None:
    folder, stop = tmp_path / "search", StopRequest()
    with pytest.raises(Interrupted):
        tune(inputs.recipe(Path("unused"), **KEYS), folder, view=StopAfter(9, stop), device="cpu", stop=stop)
    tree = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    recorded = tree.pop("environment")
    (folder / SETTINGS).write_text(json.dumps(tree), encoding="utf-8")
    resume(folder, device="cpu")
    assert losses(folder) == losses(whole.folder)
    assert json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["environment"] == recorded


class Listening(View):
    def __init__(self) -> None:
        self.text = ""

    def say(self, line: str) -> None:
        self.text += f"{line}\n"
