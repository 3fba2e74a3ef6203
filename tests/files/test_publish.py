"""Folders are replaced whole: the old one is there until the new one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from weitune.files.publish import folder_written_aside, put_in_place


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_was_there_comes_back_if_the_new_folder_gets_no_name(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    with folder_written_aside(target) as folder:
        (folder / "file").write_text("old")
    rename = Path.rename

    def interrupted(self: Path, other: Path) -> Path:
        if self.name.endswith(".partial"):
            raise error
        return rename(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(error), folder_written_aside(target) as folder:
            (folder / "file").write_text("new")
    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_windows_refuses_to_rename_over_a_file_that_somebody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [PermissionError, PermissionError]
    replace = Path.replace

    def refused(path: Path, target: Path) -> Path:
        if refusals:
            raise refusals.pop()
        return replace(path, target)

    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(PermissionError):
        put_in_place(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr("weitune.files.publish._RETRIES", 20)
    put_in_place(tmp_path / "a", tmp_path / "b")
    assert not refusals
    monkeypatch.undo()
    assert (tmp_path / "b").read_text() == "a"
