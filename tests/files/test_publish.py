"""Folders are replaced whole: the old one is there until the new one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from weitune.files.publish import folder_written_aside


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
