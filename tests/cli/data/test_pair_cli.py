"""``weitune data pair`` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from weitune.cli import main


def write(file: Path, answers: dict[str, str]) -> str:
    rows = (
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in answers.items()
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def run(folder: Path, *more: str) -> int:
    files = ["--chosen", str(folder / "a.jsonl"), "--rejected", str(folder / "b.jsonl")]
    return main(["data", "pair", *files, "--output", str(folder / "pairs.jsonl"), *more])


def test_two_files_become_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.jsonl", {"q": "good", "p": "same"})
    write(tmp_path / "b.jsonl", {"q": "bad", "p": "same"})
    assert run(tmp_path) == 0
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        }
    ]
    said = capsys.readouterr().err
    assert "1 pair written to" in said
    assert "1 pair left out: its answers are equal" in said
    assert run(tmp_path) == 2
    assert "--force" in capsys.readouterr().err
    assert run(tmp_path, "--force") == 0


def test_answers_without_a_partner_are_refused_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.jsonl", {"q": "good", "p": "alone"})
    write(tmp_path / "b.jsonl", {"q": "bad"})
    assert run(tmp_path) == 2
    said = capsys.readouterr().err
    assert "a.jsonl row 2" in said
    assert "--drop-unmatched" in said
    assert not (tmp_path / "pairs.jsonl").exists()
    assert run(tmp_path, "--drop-unmatched") == 0
    assert "1 answer left out" in capsys.readouterr().err


def test_files_that_make_no_pair_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, {"q": "same"})
    assert run(tmp_path) == 2
    assert "make no pair" in capsys.readouterr().err


def test_a_file_that_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.jsonl", {"q": "x"})
    assert run(tmp_path) == 2
    assert "b.jsonl" in capsys.readouterr().err
