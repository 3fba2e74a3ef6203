"""Folders of data files, and data sets saved by `datasets`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.read.reading_files import ROWS, lines, problems, questions, reader_of


def test_saved_data_sets(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one", num_shards=2)
    (tmp_path / "one" / "cache-123.arrow").write_bytes(b"what map keeps")
    assert questions(tmp_path / "one") == ["q1", "q2"]
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "two")
    [fault] = problems(tmp_path / "two")
    assert (fault.kind, fault.found) == ("several splits", "train, test")
    assert questions(f"{tmp_path / 'two'}:test") == ["q2"]
    assert [fault.kind for fault in problems(f"{tmp_path / 'two'}:dev")] == ["missing split"]
    assert [fault.kind for fault in problems(f"{tmp_path / 'one'}:train")] == ["missing split"]
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "three")
    assert questions(tmp_path / "three") == ["q1", "q2"]
    (tmp_path / "three" / "train" / "data-00000-of-00001.arrow").unlink()
    (tmp_path / "three" / "train" / "other.arrow").write_bytes(b"")
    assert [fault.kind for fault in problems(tmp_path / "three")] == ["missing file"]


def test_hidden_files_and_those_of_other_programs_are_ignored(tmp_path: Path) -> None:
    folder = tmp_path / ".hidden" / "data"
    for name in (
        ".ipynb_checkpoints/a-checkpoint.jsonl",
        "part/.git/x.json",
        "._a.jsonl",
        "__MACOSX/a.jsonl",
        "dataset_info.json",
        "part/state.json",
        "dataset_infos.json",
        "cache-1.arrow",
        "~$a.csv",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}", encoding="utf-8")
    for name in ("a.jsonl", "part/b.jsonl"):
        (folder / name).write_text(json.dumps(ROWS[0]), encoding="utf-8")
    assert [source.name for source in reader_of(folder).sources] == [
        str(folder / "a.jsonl"),
        str(folder / "part" / "b.jsonl"),
    ]
    (folder / "._named.jsonl").write_text(json.dumps(ROWS[1]), encoding="utf-8")
    assert questions(folder / "._named.jsonl") == ["q2"]


def test_links_are_followed_once_and_broken_ones_are_named(tmp_path: Path) -> None:
    folder, other = tmp_path / "data", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    lines(other, ROWS)
    (folder / "more").symlink_to(other)
    (folder / "again").symlink_to(folder)
    (other / "back").symlink_to(folder)
    assert questions(folder) == ["q1", "q2"]
    (folder / "gone.jsonl").symlink_to(tmp_path / "nothing.jsonl")
    assert [fault.kind for fault in problems(folder)] == ["not a file"]
    assert [fault.kind for fault in problems(folder / "gone.jsonl")] == ["not a file"]


def test_a_folder_without_permission_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines(tmp_path, ROWS)
    closed = tmp_path / "closed"
    closed.mkdir()
    iterdir = Path.iterdir

    def refusing(path: Path) -> Any:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    [fault] = problems(tmp_path)
    assert (fault.kind, fault.file) == ("unreadable folder", str(closed))
