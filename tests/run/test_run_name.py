"""A run that is given by a symbolic link keeps the name it was given by."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.export.runs import save_run
from weitune import Run
from weitune.export.options import ExportOptions, gguf_name
from weitune.export.source.export_source import open_export_source
from weitune.run.run_folder import given_name
from weitune.serve.named_runs import named_runs


@pytest.fixture
def link(tmp_path: Path) -> Path:
    save_run(tmp_path / "store" / "8f3a2c")
    link = tmp_path / "captain"
    link.symlink_to(tmp_path / "store" / "8f3a2c")
    return link


def test_served_and_exported_under_the_given_name(link: Path) -> None:
    assert list(named_runs([str(link)])) == ["captain"]
    assert list(named_runs([f"other={link}"])) == ["other"]
    tuned = open_export_source(Run(link))
    assert tuned.name == "captain"
    assert gguf_name(tuned, ExportOptions("gguf", "Q8_0")) == "captain-Q8_0.gguf"


def test_chat_with_a_server_asks_for_the_given_name(link: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weitune.cli.talk.targets import on_server
    from weitune.generate.remote import RemoteEngine

    monkeypatch.setattr(RemoteEngine, "models", lambda self: ["captain"])
    with on_server("http://127.0.0.1:1", str(link), None) as (partner, _):
        assert partner.name == "captain"


@pytest.mark.parametrize(
    ("given", "name"),
    [("captain", "captain"), ("./captain/", "captain"), ("captain/.", "captain"), ("captain/../8f3a2c", "8f3a2c"),
     ("captain/adapter/..", "8f3a2c")],
)  # fmt: skip
def test_however_the_path_is_written(link: Path, given: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(link.parent)
    assert given_name(Path(given)) == name
    monkeypatch.chdir(link)
    assert given_name(Path(os.curdir)) == "8f3a2c"  # a process is not told by which name its folder was entered
