"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import save_tiny_run
from weitune import cli
from weitune.files.paths import user_path


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/models") == tmp_path / "models"
    assert user_path("models/~") == Path("models/~")
    assert user_path("~no-such-user/models") == Path("~no-such-user/models")


def test_a_user_that_is_not_here_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--model", "~no-such-user/base", "--data", "builtin:captain-en"]) == 2
    assert "there is no model '~no-such-user/base'" in " ".join(capsys.readouterr().err.split())


def test_a_file_in_the_place_of_an_evaluation_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert cli.main(["eval", str(save_tiny_run(tmp_path / "run")), "--output", str(tmp_path / "file")]) == 2
    assert "is not a folder" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "file").read_text() == "mine"
