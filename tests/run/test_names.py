"""What lies in a run's folder, however its path is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from weitune.run.names import ENVIRONMENT, RECIPE, is_part_of_run


def test_a_part_of_a_run_is_one_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    for name in (RECIPE, ENVIRONMENT):
        (tmp_path / "run" / name).touch()
    monkeypatch.chdir(adapter)
    assert all(map(is_part_of_run, (adapter, Path(), Path("../adapter"), Path("x/.."))))
    assert not is_part_of_run(Path(".."))
