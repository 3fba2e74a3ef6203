"""Runs that learn from preferences: killed and gone on with, to the same bits; in two processes, the same losses.

The long form, twenty random instants, is bench/faults.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.pairs import REFERENCE, arguments, assert_same_run, keys, make_pairs, told
from tests.faults.processes import Process, Starter, steps_done
from tests.faults.runs import Inputs
from tests.limits import HANG_SECONDS
from weitune.run.checkpoint import list_checkpoints, newest_good
from weitune.training.run import train

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs fork and POSIX signals")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inputs]:
    folder = tmp_path_factory.mktemp("pairs")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield make_pairs(folder / "inputs")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(pairs: Inputs) -> dict[str, Path]:
    """A run of each method that nothing disturbed."""
    return {
        method: train(pairs.recipe(pairs.folder / method, **keys(pairs, method)), device="cpu").path
        for method in ("dpo", "kto")
    }


@pytest.fixture(scope="module")
def starter(pairs: Inputs) -> Iterator[Starter]:
    starter = Starter(XDG_CACHE_HOME=str(pairs.folder / "another-cache"))
    yield starter
    starter.close()


@pytest.mark.parametrize(("method", "moment"), [("dpo", "reference"), ("kto", "step 6"), ("dpo", "saving")])
def test_killed_and_gone_on_with(
    pairs: Inputs, undisturbed: dict[str, Path], starter: Starter, tmp_path: Path, method: str, moment: str
) -> None:
    run = tmp_path / "run"

    def started() -> Process:
        return starter.start(arguments(pairs, run, method), tmp_path / "said")

    process = started()
    if moment == "reference":
        process.until(lambda: "trainable parameters" in process.said)
    elif moment == "saving":
        process.until(lambda: list(run.glob(".checkpoint-*.partial")) or list_checkpoints(run), pause=0.0005)
    else:
        process.until(lambda: steps_done(run) >= 6)
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not newest_good(run)[1] if run.exists() else moment == "reference"
    again = started()
    assert again.wait() == 0, again.said
    assert_same_run(run, undisturbed[method])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"), [("dpo", []), ("kto", ["--train.shard=true", "--train.micro_tokens=60"])]
)
def test_two_processes_equal_one(
    pairs: Inputs, undisturbed: dict[str, Path], tmp_path: Path, method: str, options: list[str]
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "weitune", *arguments(pairs, run, method), *options, "--devices", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, timeout=HANG_SECONDS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    alone = undisturbed[method]
    for kind in ("step", "validation"):
        for mine, theirs in zip(told(run, kind), told(alone, kind), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5, abs=1e-5)
    weights = [load_file(each / "adapter" / "adapter_model.safetensors") for each in (run, alone)]
    flat = [torch.cat([tensors[name].flatten() for name in sorted(tensors)]) for tensors in weights]
    moved = (flat[0] - flat[1]).abs().sort().values  # AdamW makes whole steps of a gradient that is all noise:
    assert moved.norm() / flat[1].norm() < 1e-4
    assert moved[:-5].norm() / flat[1].norm() < 1e-5  # a few weights of 16,384 have such ones
    references = [load_file(each / REFERENCE) for each in (run, alone)]
    for name, sums in references[1].items():
        torch.testing.assert_close(references[0][name], sums, rtol=1e-5, atol=1e-5)
