"""The scripts of docs/cluster.md can be parsed, and every weitune command in them is one that weitune understands."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from weitune.cli.launch import Machines
from weitune.cli.train import command

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
