"""Whatever weitune has read it can print and write: names that are not UTF-8, and halves of surrogate pairs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.tiny import save_tiny
from weitune.cli import main
from weitune.data.problems import Problem, shown_name
from weitune.files.json_files import json_text
from weitune.recipe.load import load_recipe


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def odd(tmp_path: Path) -> str:
    """Return the name of a file whose bytes are GBK; a field in it has half a surrogate pair in its name."""
    folder = tmp_path / "data"
    folder.mkdir()
    name = os.fsdecode(os.fsencode(folder) + b"/" + "数据".encode("gbk") + b".jsonl")
    rows = [{"instruction": f"q{i}", "output": "a b c", "mood\ud83d": i} for i in range(4)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def test_every_command_takes_a_file_whose_name_is_not_utf_8(
    odd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, run = str(save_tiny(tmp_path / "model", "qwen2")), str(tmp_path / "run")
    shown = shown_name(odd)
    assert "\\udcca" in shown
    assert main(["data", "check", odd]) == 0
    said = capsys.readouterr().out
    assert shown in said
    assert "mood\\ud83d (4)" in said
    assert main(["data", "check", odd, "--json", "--model", model]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sources"][0]["name"] == odd
    unused = report["sources"][0]["unused_fields"]
    assert {shown_name(name): n for name, n in unused.items()} == {"mood\\ud83d": 4}
    assert main(["data", "preview", odd, "--model", model]) == 0
    assert main(["data", "preview", odd, "--model", model, "--html", str(tmp_path / "page.html")]) == 0
    assert main(["data", "convert", odd, "-o", str(tmp_path / "out.jsonl")]) == 0
    assert len((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    train = ["train", "--model", model, "--data", odd, "--output", run, "--train.epochs", "1", "--validation", odd]
    assert main([*train, "--train.batch-size", "2", "--train.precision", "fp32"]) == 0
    assert load_recipe(f"{run}/recipe.yaml").data == [odd]
    assert json.loads(Path(run, "data.json").read_text(encoding="utf-8"))["sources"][0]["name"] == odd
    assert main(["eval", run, "--json", "--limit", "1"]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_a_fault_in_such_a_file_names_it(odd: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(odd).write_text('{"instruction": 1}', encoding="utf-8")
    for command in ("check", "convert"):
        assert main(["data", command, odd]) == 2
        said = "".join(capsys.readouterr())
        assert shown_name(odd) in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name.jsonl", "plain name.jsonl"),
        ("数据.jsonl", "数据.jsonl"),
        ("a ", "a\\x20"),
        (" ", "\\x20"),
        ("", '""'),
        ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("a\u00a0b\u3000c", "a\\xa0b\\u3000c"),
        ("a\nb\x1b[31m", "a\\nb\\x1b[31m"),
        ("cafe\u0301", "cafe\\u0301"),
        ("café", "café"),
        ("a\ufe0f\u3164", "a\\ufe0f\\u3164"),
        ("a\udcb2", "a\\udcb2"),
    ],
)
def test_names_are_shown_so_that_they_differ(name: str, shown: str) -> None:
    assert shown_name(name) == shown
    assert shown.encode()
    assert shown in str(Problem("k", "e", "f", "c", field=name)) or not name


def test_json_text_can_be_written_and_read_back() -> None:
    value = {"a\ud83d": ["\udcb2", "数据 😀", "\\ud83d"], "n": 1.5}
    assert json.loads(json_text(value, indent=1).encode()) == value
    assert json_text(value).count("数据 😀") == 1


def test_a_system_prompt_must_be_text(odd: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "convert", odd, "--system", "\udcb2"]) == 2
    said = capsys.readouterr().err
    assert "system: must be text in UTF-8" in said
    assert "Traceback" not in said
