"""The scripts of docs/cluster.md can be parsed, and every weitune command in them is one that weitune understands."""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cli.look.test_watch import wait_for
from tests.limits import HANG_SECONDS
from weitune.cli.train.launch import Machines
from weitune.cli.train.train import command

TEXT = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL))


def commands() -> list[list[str]]:
    joined = TEXT.replace("\\\n", " ")
    found = re.findall(r"weitune train recipe\.yaml[^\n'`]*|weitune train --resume[^\n'`]*", joined)
    return [shlex.split(line)[2:] for line in found]


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_weitune_understands(arguments: list[str]) -> None:
    values = {"$SLURM_NNODES": "2", "$SLURM_NODEID": "1", "$0:29500": "a:29500", "$main:29500": "a:29500",
              "$SKYPILOT_NUM_GPUS_PER_NODE": "8", "$SKYPILOT_NUM_NODES": "2", "$SKYPILOT_NODE_RANK": "1"}  # fmt: skip
    context = command.make_context("train", [values.get(word, word) for word in arguments])
    found = context.params
    machines = Machines(found["devices"] or 1, found["nodes"], found["node_rank"], found["main_address"])
    assert len(machines.environments()) == (found["devices"] or 1)


def test_the_scripts_can_be_parsed() -> None:
    assert set(BLOCKS) == {"bash", "yaml", "python"}
    subprocess.run(["bash", "-n"], input=BLOCKS["bash"], text=True, check=True)
    task = yaml.safe_load(BLOCKS["yaml"])
    subprocess.run(["bash", "-n"], input=task["run"], text=True, check=True)
    assert task["num_nodes"] == 2
    ast.parse(BLOCKS["python"])


def test_what_restarts_a_job_runs_a_command_that_may_be_started_again() -> None:
    assert "#SBATCH --requeue" in BLOCKS["bash"]
    assert "--resume-existing" in BLOCKS["bash"]
    assert '"--resume-existing"' in BLOCKS["python"]
    assert any("--max-restarts" in line and "--resume-existing" in line for line in TEXT.splitlines())
    assert all(
        context.params["resume_existing"]
        for arguments in commands() if "--resume-existing" in arguments
        for context in [command.make_context("train", [w if "$" not in w else "1" for w in arguments])]
    )  # fmt: skip


def test_there_are_commands_of_every_kind() -> None:
    assert sum("--main-address" in arguments for arguments in commands()) >= 4


@pytest.mark.skipif(os.name == "nt", reason="a script for bash")
def test_the_script_for_slurm_passes_the_signal_on_and_waits_for_training(tmp_path: Path) -> None:
    """Programs that only look like SLURM and weitune: training heeds SIGUSR1, goes on, and ends with 3."""
    programs = {
        "scontrol": "echo host",
        "srun": 'exec "$@"',
        "weitune": f"trap 'touch {tmp_path}/checkpoint' USR1; touch {tmp_path}/trains\n"
        f"until [ -e {tmp_path}/end ]; do sleep 0.05; done; exit 3",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job").write_text(BLOCKS["bash"])
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    job = subprocess.Popen(["bash", str(tmp_path / "job")], env=environment)
    wait_for((tmp_path / "trains").exists)

    def passed_on() -> bool:
        job.send_signal(signal.SIGUSR1)
        return (tmp_path / "checkpoint").exists()

    wait_for(passed_on)
    assert job.poll() is None
    (tmp_path / "end").touch()
    assert job.wait(HANG_SECONDS) == 3
