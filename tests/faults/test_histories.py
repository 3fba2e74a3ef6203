"""Random histories of saving, rotating, rotting and crashing: never a loss of the newest good one or of the best."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.damage import flip, lose
from tests.faults.history import live
from tests.faults.small import FILES, save
from weitune.run.checkpoint import list_checkpoints
from weitune.run.names import MANIFEST
from weitune.run.rotation import rotate


@pytest.mark.parametrize("block", range(10))
def test_a_thousand_histories(tmp_path: Path, block: int) -> None:
    for seed in range(100 * block, 100 * block + 100):
        run = tmp_path / str(seed)
        run.mkdir()
        live(run, seed)


class TestRotation:
    def test_keeps_the_newest_and_the_best(self, tmp_path: Path) -> None:
        for step, metric in enumerate([2.1, 1.7, 1.9, 2.0, 2.2], start=1):
            save(tmp_path, step, metric)
            rotate(tmp_path, 2)
        assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [2, 4, 5]

    def test_a_rotten_one_takes_no_good_ones_place(self, tmp_path: Path) -> None:
        for step in (1, 2, 3, 4):
            save(tmp_path, step)
        flip(tmp_path / "checkpoint-3" / FILES[1], random.Random(0))
        faulty = rotate(tmp_path, 2)
        assert [(checkpoint.step, FILES[1] in fault) for checkpoint, fault in faulty] == [(3, True)]
        assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [2, 3, 4]

    def test_a_rotten_best_is_not_the_best(self, tmp_path: Path) -> None:
        for step, metric in enumerate([0.1, 0.2, 0.3, 0.4], start=1):
            save(tmp_path, step, metric)
        flip(tmp_path / "checkpoint-1" / FILES[1], random.Random(0))
        rotate(tmp_path, 1)
        assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [2, 4]

    def test_deletes_nothing_that_weitune_did_not_write(self, tmp_path: Path) -> None:
        for step in (1, 2, 3):
            save(tmp_path, step)
        (tmp_path / "checkpoint-1" / "notes.txt").write_text("mine")
        (tmp_path / "checkpoint-0").mkdir()
        (tmp_path / "checkpoint-0" / MANIFEST).write_text('{"files": {}}')
        (tmp_path / "checkpoint-old").mkdir()
        rotate(tmp_path, 1)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "checkpoint-0", "checkpoint-1", "checkpoint-3", "checkpoint-old",
        ]  # fmt: skip

    def test_deletes_nothing_without_enough_good_ones(self, tmp_path: Path) -> None:
        for step in (1, 2, 3):
            lose(save(tmp_path, step).folder / FILES[2], random.Random(0))
        save(tmp_path, 4)
        rotate(tmp_path, 2)
        assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [1, 2, 3, 4]
