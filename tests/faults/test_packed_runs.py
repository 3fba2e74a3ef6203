"""Runs that compute with packed copies of the frozen matrices, as on a processor with AMX."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.runs import Inputs, Listener, digest
from weitune.errors import Interrupted
from weitune.model.fast.matmul import _has_bfloat16
from weitune.model.fast.packed import pack_layers
from weitune.run.events import read_events
from weitune.run.names import ENVIRONMENT
from weitune.training.run import resume, train
from weitune.training.signals import StopRequest

BF16 = {"train.precision": "bf16"}
pytestmark = [
    pytest.mark.skipif(not _has_bfloat16(), reason="oneDNN packs bfloat16 on AVX-512 alone"),
    pytest.mark.usefixtures("packing"),
]


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack on any processor that can."""
    for user in ("training.trainable", "forecast.run_forecast"):
        monkeypatch.setattr(f"weitune.{user}.packing_pays", lambda: True)


def packs(run: Path) -> bool:
    recorded: bool = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))["packed"]
    return recorded


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in read_events(run) if event["event"] == "step"]


@pytest.mark.parametrize("init", ["default", "pissa"])
def test_a_run_packs_and_goes_on_as_it_began(
    init: str, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PiSSA takes the adapter from the base: resuming replaces the matrices."""
    keys = BF16 | {"lora.init": init}
    whole = train(inputs.recipe(tmp_path / "whole", **keys), device="cpu").path
    assert packs(whole)
    stop = StopRequest()
    recipe, listener = inputs.recipe(tmp_path / "run", **keys), Listener(after={5: stop.stop})
    with pytest.raises(Interrupted):
        train(recipe, device="cpu", reporter=listener, stop=stop)
    made: list[object] = []
    monkeypatch.setattr("weitune.training.build.pack_layers", lambda layers: (made.extend(layers), pack_layers(layers)))
    run = resume(tmp_path / "run", device="cpu").path
    assert made
    assert digest(run / "adapter") == digest(whole / "adapter")

    monkeypatch.setattr("weitune.training.trainable.packing_pays", lambda: False)
    plain = train(inputs.recipe(tmp_path / "plain", **keys), device="cpu").path
    assert not packs(plain)
    assert losses(whole) == pytest.approx(losses(plain), rel=2e-2)


def test_a_run_whose_copies_do_not_fit_any_more_says_so(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, listener = StopRequest(), Listener()
    recipe = inputs.recipe(tmp_path / "run", **BF16)
    with pytest.raises(Interrupted):
        train(recipe, device="cpu", reporter=Listener(after={5: stop.stop}), stop=stop)
    monkeypatch.setattr("weitune.training.trainable.Trainable.copied_bytes", lambda _: 1 << 60)
    resume(tmp_path / "run", device="cpu", reporter=listener)
    assert "packed copies of the frozen matrices do not fit in memory" in listener.text


def test_a_run_that_did_not_pack_does_not_begin_to(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()
    recipe, listener = inputs.recipe(tmp_path / "run", **BF16), Listener(after={5: stop.stop})
    with monkeypatch.context() as changed:
        changed.setattr("weitune.training.trainable.packing_pays", lambda: False)
        with pytest.raises(Interrupted):
            train(recipe, device="cpu", reporter=listener, stop=stop)
    made: list[object] = []
    monkeypatch.setattr("weitune.training.build.pack_layers", made.append)
    resume(tmp_path / "run", device="cpu")
    assert made == []
