"""Every file of a checkpoint cut short, flipped in one bit, or missing: detected, named, and an older one is used."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.damage import Damage, cut, empty, flip, grow, lose, swap_for_a_folder
from tests.faults.small import FILES, is_intact, save
from weitune.run.checkpoint import fault_of, newest_good, set_aside
from weitune.run.names import MANIFEST


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("damage", [cut, flip, lose, grow, empty, swap_for_a_folder], ids=lambda d: d.__name__)
@pytest.mark.parametrize("file", [*FILES, MANIFEST])
def test_damage_is_named_and_the_older_one_used(tmp_path: Path, file: str, damage: Damage, seed: int) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    damage(newest.folder / file, random.Random(f"{file} {damage.__name__} {seed}"))
    assert file in fault_of(newest)
    found, passed_over = newest_good(tmp_path)
    assert is_intact(found)
    assert found is not None
    assert found.step == 1
    assert [(checkpoint.step, file in fault) for checkpoint, fault in passed_over] == [(2, True)]


@pytest.mark.parametrize("file", [*FILES, MANIFEST])
def test_every_single_bit_is_seen(tmp_path: Path, file: str) -> None:
    checkpoint = save(tmp_path, 1)
    path = checkpoint.folder / file
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        assert fault_of(checkpoint), f"bit {bit} of {file}"
    path.write_bytes(whole)
    assert not fault_of(checkpoint)


def test_a_folder_under_another_step_s_name_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2).folder.rename(tmp_path / "checkpoint-9")
    found, passed_over = newest_good(tmp_path)
    assert found is not None
    assert found.step == 1
    assert [checkpoint.step for checkpoint, _ in passed_over] == [9]


def test_what_is_set_aside_is_kept_and_is_no_checkpoint_any_more(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        checkpoint = save(tmp_path, 2)
        lose(checkpoint.folder / FILES[0], random.Random(0))
        names.append(set_aside(checkpoint).name)
    assert names == ["checkpoint-2.damaged", "checkpoint-2.damaged-2", "checkpoint-2.damaged-3"]
    assert newest_good(tmp_path) == (None, [])


def test_no_checkpoints_at_all(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert newest_good(tmp_path) == (None, [])
