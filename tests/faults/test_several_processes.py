"""One process, two or three: the same losses and the same adapter; killed, and gone on with by another number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.faults.processes import steps_done
from tests.faults.runs import Inputs
from tests.limits import HANG_SECONDS
from weitune.cli.train.launch import Machines
from weitune.errors import InputError
from weitune.run.events import read_events
from weitune.training.run import train

STEPS = 28
PLAIN = {
    "lora.dropout": 0.0, "train.epochs": 4, "train.checkpoint_every": 2, "train.keep_checkpoints": 50,
    "train.evaluate_every": 10, "train.sample_prompts": [],
}  # fmt: skip


def weitune(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "weitune", "train", "--device", "cpu", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    said, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == code, said
    return said


def recipe_file(inputs: Inputs, folder: Path, **more: object) -> str:
    path = folder / "recipe.yaml"
    flat = inputs.tree(folder / "run", validation=[str(inputs.data)], **PLAIN, **more)
    tree: dict[str, object] = {}
    for key, value in flat.items():
        group, _, name = key.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[name] = value  # type: ignore[index]
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


def losses(run: Path) -> list[float]:
    found = [event for event in read_events(run) if event["event"] == "step"]
    assert [event["step"] for event in found] == list(range(1, STEPS + 1))
    return [event["loss"] for event in found]


def validation_losses(run: Path) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in read_events(run) if event["event"] == "validation"}


def adapter(run: Path) -> torch.Tensor:
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.fixture(scope="module")
def alone(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone") / "run"
    return train(inputs.recipe(output, validation=[str(inputs.data)], **PLAIN), device="cpu").path


def assert_as_alone(run: Path, alone: Path) -> None:
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    assert list(validation_losses(alone)) == [0, 10, 20, STEPS]
    assert validation_losses(run) == pytest.approx(validation_losses(alone), rel=1e-5)
    assert (adapter(run) - adapter(alone)).norm() / adapter(alone).norm() < 1e-5


def test_two_processes_keep_what_one_keeps(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(f'{{"prompt": "Say {word}."}}' for word in ("one", "two", "three", "four")))
    kept = {"keep.share": 0.3, "keep.data": [str(prompts)], "keep.max_answer_tokens": 5}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache of one"))
    recipe = inputs.recipe(tmp_path / "alone", validation=[str(inputs.data)], **PLAIN, **kept)
    by_one = train(recipe, device="cpu").path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache of two"))
    finish(weitune(recipe_file(inputs, tmp_path, **kept), "--devices", "2"))
    assert_as_alone(tmp_path / "run", by_one)
    name = "kept.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (by_one / name).read_bytes()


def test_two_processes_equal_one_and_one_of_them_talks(inputs: Inputs, tmp_path: Path, alone: Path) -> None:
    said = finish(weitune(recipe_file(inputs, tmp_path), "--devices", "2"))
    assert_as_alone(tmp_path / "run", alone)
    assert said.count("done:") == 1
    assert said.count("trainable parameters") == 1
    processes = {
        event["computed_tokens"] < event["tokens"]
        for event in read_events(tmp_path / "run")
        if event["event"] == "step"
    }
    assert processes == {True}


def test_killed_with_two_resumed_with_three_stopped_and_ended_with_one(
    inputs: Inputs, tmp_path: Path, alone: Path
) -> None:
    run = tmp_path / "run"
    first = weitune(recipe_file(inputs, tmp_path), "--devices", "2")
    until(lambda: steps_done(run) >= 4, first)
    kill_rank(first, "1")
    assert "SIGKILL" in finish(first, 1)
    done = steps_done(run)
    assert 4 <= done < STEPS

    second = weitune("--resume", str(run), "--devices", "3")
    until(lambda: steps_done(run) >= done + 4, second)
    second.send_signal(signal.SIGTERM)
    said = finish(second, 130)
    assert "devices: 3 instead of 2" in said
    assert said.count("continue with") == 1

    finish(weitune("--resume", str(run)))
    assert_as_alone(run, alone)


def test_what_is_wrong_is_said_once_with_its_exit_code(inputs: Inputs, tmp_path: Path) -> None:
    said = finish(weitune(recipe_file(inputs, tmp_path), "--devices", "2", "--lora.target_modules", "nothing"), 2)
    assert said.count("error:") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variable", "engine"), [("USE_DEEPSPEED", "DeepSpeed"), ("USE_FSDP", "FSDP"), ("USE_MEGATRON_LM", "Megatron")]
)
def test_an_engine_of_accelerate_that_would_not_be_used_is_refused(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, engine: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{variable}", "true")  # as `accelerate launch --config_file` sets it
    with pytest.raises(InputError, match=f"asks for .*{engine}") as refused:
        train(inputs.recipe(tmp_path / "run"), device="cpu")
    assert "--train.shard true" in refused.value.fix
    assert not (tmp_path / "run").exists()


def test_machines_must_know_where_to_meet() -> None:
    with pytest.raises(InputError, match="main-address"):
        Machines(2, nodes=2).environments()
    with pytest.raises(InputError, match="node-rank"):
        Machines(2, nodes=2, node=2, address="a:1").environments()
    ranks = [each["RANK"] for node in (0, 1) for each in Machines(2, 2, node, "a:1").environments()]
    assert ranks == ["0", "1", "2", "3"]


def until(condition: object, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + HANG_SECONDS
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.002)


def kill_rank(launcher: subprocess.Popen[str], rank: str) -> None:
    import psutil

    for child in psutil.Process(launcher.pid).children():
        if child.environ().get("RANK") == rank:
            child.kill()
