"""``weitune report`` writes the page about a run anew, and says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.pages import made_run
from weitune.cli import main


def test_reports_are_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [made_run(tmp_path / name) for name in "ab"]
    (runs[0] / "report.html").write_text("of an earlier version", encoding="utf-8")
    assert main(["report", *map(str, runs)]) == 0
    assert all("Did it work?" in (run / "report.html").read_text(encoding="utf-8") for run in runs)
    assert f"wrote {runs[1] / 'report.html'}" in capsys.readouterr().err


def test_a_folder_without_a_run_and_one_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["report", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("weitune.report.run_report.publish_text", refused)
    assert main(["report", str(made_run(tmp_path / "a"))]) == 2
    assert f"the report of '{tmp_path / 'a'}' cannot be written: Permission denied" in capsys.readouterr().err


def test_files_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*_: object) -> None:
        raise KeyError("loss")

    monkeypatch.setattr("weitune.report.run_report.run_report", odd)
    assert main(["report", str(made_run(tmp_path / "a"))]) == 2
    assert f"the files of '{tmp_path / 'a'}' cannot be read" in capsys.readouterr().err
