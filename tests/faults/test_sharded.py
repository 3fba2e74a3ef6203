"""A base that is divided between two processes: what each holds, and the same losses and adapter as with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.runs import STEPS, Inputs
from tests.faults.sharded import BY_BLOCKS, HYBRID
from tests.limits import HANG_SECONDS
from tests.published import FP8, quantize
from tests.tiny import save_tiny, tiny_model
from weitune.cli.train.launch import Machines
from weitune.run.events import read_events
from weitune.training.run import resume, train

HALFWAY = 7
PLAIN = {
    "lora.dropout": 0.0, "train.schedule": "constant", "train.micro_tokens": 40,  # several passes, not as many in each
    "validation": 0.05, "train.evaluate_every": 7, "train.sample_tokens": 4,
}  # fmt: skip
ON = {"train.max_steps": STEPS}


@pytest.fixture(scope="module")
def alone(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    return train(inputs.recipe(folder / "run", **PLAIN, **ON), device="cpu").path


@pytest.fixture(scope="module")
def together(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes that hold half of the base each have done and said."""
    folder = tmp_path_factory.mktemp("together")
    narrow = save_tiny(folder / "narrow")
    tiny_model().to(torch.bfloat16).save_pretrained(narrow)
    published = save_tiny(folder / "published")
    quantize(published, FP8)
    half = {**PLAIN, "train.max_steps": HALFWAY}
    train(inputs.recipe(folder / "begun alone", **half), device="cpu")
    orders: dict[str, Any] = {
        "narrow": str(narrow),
        "published": str(published),
        "train": [
            inputs.tree(folder / "whole run", **PLAIN, **ON, **{"train.shard": True}),
            inputs.tree(folder / "begun together", **half, **{"train.shard": True}),
        ],
        "resume": str(folder / "begun alone"),
        "overrides": {**ON, "train.shard": True},
        "answers": str(folder),
    }
    path = folder / "orders.json"
    path.write_text(json.dumps(orders), encoding="utf-8")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.sharded", str(path)],
            env={**os.environ, **environment}, cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for environment in Machines(2).environments()
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=HANG_SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return folder


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / rank).read_text(encoding="utf-8")) for rank in ("0", "1")]


@pytest.mark.parametrize("weights", ["loaded", "published"])
def test_each_process_holds_half_of_the_matrices(together: Path, weights: str) -> None:
    found = [answer[weights] for answer in answers(together)]
    whole = sum(p.numel() for p in tiny_model().parameters() if p.dim() > 1)
    assert [each["matrices"] for each in found] == [whole] * 2
    assert sum(each["held"] for each in found) == whole
    assert max(each["held"] for each in found) == whole / 2  # all have an even number of rows
    assert all(each["vectors held"] == each["vectors"] for each in found)
    assert all(each["gathered"] < 4 * whole for each in found)


@pytest.mark.parametrize("model", ["untied", "tied", "experts"])
def test_gradients_are_those_of_the_whole_model_in_every_manner(together: Path, model: str) -> None:
    for answer in answers(together):
        assert len(answer[model]) == 6
        assert max(answer[model].values()) < 1e-6, answer[model]


@pytest.mark.parametrize("family", HYBRID)
def test_so_are_they_through_recurrent_layers(together: Path, family: str) -> None:
    for answer in answers(together):
        assert set(answer[family]) == {name for name, *_ in BY_BLOCKS}
        assert max(answer[family].values()) < 1e-6, answer[family]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["event"] == kind]


def assert_as_alone(run: Path, alone: Path) -> None:
    assert [e["step"] for e in events(run, "step")] == list(range(1, STEPS + 1))
    for kind, key in (("step", "loss"), ("step", "grad_norm"), ("validation", "loss")):
        assert [e[key] for e in events(run, kind)] == pytest.approx([e[key] for e in events(alone, kind)], rel=1e-5)
    ours, theirs = (load_file(r / "adapter" / "adapter_model.safetensors") for r in (run, alone))
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    one, other = (torch.cat([t[name].flatten() for name in sorted(t)]) for t in (ours, theirs))
    assert (one - other).norm() / other.norm() < 1e-5


def test_two_processes_with_half_of_the_base_each_equal_one(together: Path, alone: Path) -> None:
    run = together / "whole run"
    assert_as_alone(run, alone)
    assert (run / "adapter" / "adapter_config.json").read_text() == (
        alone / "adapter" / "adapter_config.json"
    ).read_text()
    samples = [[s["answer"] for e in events(r, "validation") for s in e["samples"]] for r in (run, alone)]
    assert samples[0] == samples[1]
    assert len(samples[0]) == 3


def test_begun_together_ended_alone(together: Path, alone: Path) -> None:
    run = together / "begun together"
    resume(run, overrides={**ON, "train.shard": False}, device="cpu")
    assert_as_alone(run, alone)


def test_begun_alone_ended_together(together: Path, alone: Path) -> None:
    assert_as_alone(together / "begun alone", alone)
