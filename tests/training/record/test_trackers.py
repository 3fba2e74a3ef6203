"""Trackers get the figures of every step and evaluation; one that is not installed is named before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.pairs import keys, make_pairs
from tests.faults.runs import make_inputs
from weitune.errors import MissingExtraError
from weitune.recipe.load import build_recipe
from weitune.run.events import read_events
from weitune.training.record import trackers
from weitune.training.reporter import Reporter
from weitune.training.run import train

KEYS: dict[str, Any] = {
    "validation": 0.3, "train.max_steps": 4, "train.evaluate_every": 2, "train.sample_prompts": [],
    "log.trackers": "tensorboard",
}  # fmt: skip


def test_tensorboard_has_what_the_events_have(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(make_inputs(tmp_path / "in").recipe(tmp_path / "run", **KEYS), device="cpu").path
    found = EventAccumulator(str(run / trackers.FOLDER / trackers.PROJECT))
    found.Reload()
    for tag, kind in (("train/loss", "step"), ("validation/loss", "validation")):
        told = [(event["step"], event["loss"]) for event in read_events(run) if event["event"] == kind]
        kept = [(scalar.step, scalar.value) for scalar in found.Scalars(tag)]
        assert [step for step, _ in kept] == [step for step, _ in told]
        assert [value for _, value in kept] == pytest.approx([value for _, value in told], rel=1e-6)
    assert {"train/learning_rate", "train/memory_bytes", "validation/perplexity"} <= set(found.Tags()["scalars"])


def test_figures_of_preferences_are_logged_by_their_names(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pairs = make_pairs(tmp_path / "in")
    tracked = {**keys(pairs, "dpo"), "train.max_steps": 2, "log.trackers": "tensorboard"}
    run = train(pairs.recipe(tmp_path / "run", **tracked), device="cpu").path
    found = EventAccumulator(str(run / trackers.FOLDER / trackers.PROJECT))
    found.Reload()
    names = ("rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/rejected")
    assert {f"{part}/{name}" for part in ("train", "validation") for name in names} <= set(found.Tags()["scalars"])


OFFLINE = {
    "wandb": {"WANDB_MODE": "offline"},
    "swanlab": {"SWANLAB_MODE": "offline"},
    "trackio": {"TRACKIO_DIR": "logs"},
    "mlflow": {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"},
}


@pytest.mark.parametrize("name", OFFLINE)
def test_the_others_write_every_figure_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not trackers.installed(name):
        pytest.skip(f"the extra {name} is not installed")
    monkeypatch.chdir(tmp_path)
    for variable, value in OFFLINE[name].items():
        monkeypatch.setenv(variable, value)
    recipe = make_inputs(tmp_path / "in").recipe(tmp_path / "run", **{**KEYS, "log.trackers": name})
    run = train(recipe, device="cpu").path
    place = {"wandb": run / trackers.FOLDER, "swanlab": run / trackers.FOLDER, "trackio": tmp_path / "logs"}
    written = place.get(name, tmp_path / "mlflow.db")
    files = [path for path in written.rglob("*") if path.is_file()] if written.is_dir() else [written]
    contents = b"".join(path.read_bytes() for path in files)
    for figure in ("train/loss", "train/learning_rate", "validation/loss", "lora.alpha"):
        assert figure.encode() in contents, figure


@pytest.mark.parametrize("method", ["start", "log", "finish"])
def test_the_run_goes_on_without_one_that_fails(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    calls: list[str] = []

    class Unreachable:
        def __init__(self, project: str, **options: Any) -> None: ...

        def __getattr__(self, name: str) -> Any:
            def call(*values: Any, **more: Any) -> None:
                calls.append(name)
                if name == method:
                    raise ConnectionError("no route to host\nand much more")

            return call

    class Listener(Reporter):
        def say(self, line: str) -> None:
            said.append(line)

    said: list[str] = []
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Unreachable)
    recipe = make_inputs(tmp_path / "in").recipe(tmp_path / "run", **KEYS)
    run = train(recipe, device="cpu", reporter=Listener())
    assert [event["step"] for event in read_events(run.path) if event["event"] == "step"] == [1, 2, 3, 4]
    assert (run.path / "adapter" / "adapter_model.safetensors").exists()
    assert calls.count(method) == 1
    assert [line for line in said if line.startswith("tensorboard failed (no route to host);")]
    assert calls[-1] == method, "nothing is asked of it afterwards"


def test_one_that_is_not_installed_is_named_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(tmp_path / "in")
    monkeypatch.setattr(trackers, "installed", lambda name: name != "mlflow")
    with pytest.raises(MissingExtraError, match=r"weitune\[mlflow\]"):
        train(inputs.recipe(tmp_path / "run", **{"log.trackers": "tensorboard,mlflow"}), device="cpu")
    assert not (tmp_path / "run").exists()


def test_all_that_can_be_asked_for_are_accelerates() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    recipe = build_recipe({"model": "m", "data": ["d"]}, {"log.trackers": "tensorboard,wandb,swanlab,trackio,mlflow"})
    assert set(recipe.log.trackers) <= set(LOGGER_TYPE_TO_CLASS)
