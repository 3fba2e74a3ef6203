"""A checkpoint that was being replaced when its process was killed gets its name back."""

from __future__ import annotations

import json
from pathlib import Path

from weitune.run.checkpoint import restore_replaced
from weitune.run.manifest import sha256_of
from weitune.run.names import MANIFEST


def outdated(run: Path, name: str, *, damaged: bool = False, manifest: bool = True) -> None:
    folder = run / f".{name}.outdated"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    entry = {"bytes": 2, "sha256": sha256_of(folder / "state.json")}
    if manifest:
        (folder / MANIFEST).write_text(json.dumps({"files": {"state.json": entry}}))
    if damaged:
        (folder / "state.json").unlink()


def test_only_whole_checkpoints_without_a_successor_come_back(tmp_path: Path) -> None:
    outdated(tmp_path, "checkpoint-4")
    outdated(tmp_path, "checkpoint-8", damaged=True)
    outdated(tmp_path, "checkpoint-12", manifest=False)
    outdated(tmp_path, "checkpoint-16")
    outdated(tmp_path, "adapter")
    (tmp_path / "checkpoint-16").mkdir()
    restore_replaced(tmp_path)
    assert (tmp_path / "checkpoint-4" / "state.json").is_file()
    hidden = {".checkpoint-8.outdated", ".checkpoint-12.outdated", ".checkpoint-16.outdated", ".adapter.outdated"}
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", "checkpoint-16", *hidden}
