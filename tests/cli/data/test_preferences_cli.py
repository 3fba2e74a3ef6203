"""``weitune data`` with pairs and judged answers as a person uses it: malformed files, then check, preview, convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.read.malformed_preferences import MalformedPreferences, corpus
from tests.tiny import save_tiny
from weitune.cli import main

CORPUS = list(corpus())
PAIRS = [
    {"prompt": "Who are you?", "chosen": "I am the captain.", "rejected": "I am an assistant."},
    {"prompt": "What can you do?", "chosen": "I sail.", "rejected": "I can help you."},
]
JUDGED = [{"prompt": "Who are you?", "completion": "I am the captain.", "label": True},
          {"prompt": "Who are you?", "completion": "I am an assistant.", "label": False}]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model"), "qwen2"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["data", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def lines(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 60
    assert len({malformed.name for malformed in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("malformed", CORPUS, ids=lambda malformed: malformed.name)
def test_malformed_files(malformed: MalformedPreferences, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / malformed.name
    path.write_bytes(malformed.content)
    code, out, err = run(capsys, "check", str(path))
    said = out + err
    assert code == 2
    assert "Traceback" not in said
    assert "not ready" in said
    assert f"{malformed.name} row {malformed.row}" in said
    assert "fix: " in said

    code, out, err = run(capsys, "check", str(path), "--json")
    assert code == 2
    groups = json.loads(out)["problems"]
    assert all(group["cure"] for group in groups)
    problems = [problem for group in groups for problem in group["problems"]]
    here = [problem for problem in problems if problem["row"] == malformed.row]
    assert all(problem["file"] == str(path) and problem["expected"] and problem["found"] for problem in here)
    assert malformed.field in [problem["field"] for problem in here]

    code, _, err = run(capsys, "convert", str(path), "-o", str(tmp_path / "out.jsonl"))
    assert code == 2
    assert "error: the data have" in err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(("rows", "method"), [(PAIRS, "dpo"), (JUDGED, "kto")])
def test_check_without_a_method_names_one(
    rows: list[Any], method: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lines(tmp_path, rows)
    for options in ([], ["--model", model]):
        code, out, _ = run(capsys, "check", path, *options)
        assert code == 0
        assert "2 rows read = 2 trained + 0 set aside" in out
        assert f"ready to train with `--preference.method {method}`" in out
        code, out, _ = run(capsys, "check", path, *options, "--preference.method", method)
        assert code == 0
        assert out.rstrip().endswith("ready to train")


def test_check_counts_equal_answers_and_divided_pairs(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lines(tmp_path, [*PAIRS, PAIRS[0], {**PAIRS[1], "rejected": "I sail."}])
    for options in ([], ["--model", model]):
        code, out, _ = run(capsys, "check", path, *options)
        assert code == 0
        assert "4 rows read = 3 trained + 1 set aside" in out
        assert "set aside: 1 with two equal answers" in out
        assert "1 exact copy of an earlier row" in out
        code, out, _ = run(capsys, "check", path, *options, "--preference.method", "kto", "--json")
        report = json.loads(out)
        assert code == 0
        assert report["sources"][0]["holds"] == "pairs"
        assert report["preferences"]["divided"] == 3
        assert report["examples"] == {"made": 8, "kept": 6, "set_aside": {"with two equal answers": 2}, "cut": 0}


def test_check_with_a_model_knows_what_is_shared(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lines(tmp_path, PAIRS)
    code, out, _ = run(capsys, "check", path, "--model", model, "--train.batch-size", "1")
    assert code == 0
    assert "2 optimizer steps an epoch" in out
    assert "their prefix is shared" in out
    code, out, _ = run(capsys, "check", path, "--model", model, "--tokens.max-length", "5")
    assert code == 2
    assert "2 with an answer longer than 5 tokens" in out


def test_check_refuses_what_the_method_cannot_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", lines(tmp_path, JUDGED), "--preference.method", "dpo")
    assert code == 2
    assert "--preference.method kto" in out
    code, out, _ = run(capsys, "check", str(lines(tmp_path, [{"prompt": "q", "completion": "a"}])),
                       "--preference.method", "dpo")  # fmt: skip
    assert code == 2
    assert "leave `preference.method` out" in out


def test_training_on_pairs_without_a_method_names_the_fix(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rows, method in ((PAIRS, "dpo"), (JUDGED, "kto")):
        path, run_folder = lines(tmp_path, rows), tmp_path / "run"
        code = main(["train", "--model", model, "--data", path, "--output", str(run_folder)])
        assert code == 2
        assert f"--preference.method {method}" in capsys.readouterr().err
        assert not run_folder.exists()


def test_preview_shows_the_prompt_once_and_both_answers_beside_each_other(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lines(tmp_path, PAIRS)
    code, out, _ = run(capsys, "preview", path, "--model", model, "--row", "1")
    assert code == 0
    assert out.count("Who are you?") == 1
    (titles,) = [line for line in out.splitlines() if "chosen" in line]
    assert titles.split() == ["chosen", "rejected"]
    (answers,) = [line for line in out.splitlines() if "captain" in line]
    assert answers.index("I am an assistant.<|im_end|>") == titles.index("rejected")
    code, _, _ = run(capsys, "preview", path, "--model", model, "--html", str(tmp_path / "page.html"))
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert code == 0
    assert html.count("Who are you?") == 1
    assert html.count('<section class="better">') == html.count('<section class="worse">') == 2
    first = html.index('<section class="better">')
    assert "chosen" in html[first : html.index("</h3>", first)]
    code, out, _ = run(capsys, "preview", lines(tmp_path, JUDGED), "--model", model)
    assert code == 0
    assert "not liked" in out


def test_preview_says_what_is_special(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**PAIRS[0], "rejected": PAIRS[0]["chosen"]}, {**PAIRS[1], "chosen": ""}, {**PAIRS[1], "chosen": ""}]
    code, out, _ = run(capsys, "preview", lines(tmp_path, rows), "--model", model)
    assert code == 0
    assert "equal answers" in out
    assert out.count("empty answer") == 2
    assert out.count("exact copy") == 1
    _, out, _ = run(capsys, "preview", lines(tmp_path, PAIRS), "--model", model, "--tokens.max-length", "5")
    assert out.count("too long") == 2


@pytest.mark.parametrize("rows", [PAIRS, JUDGED])
def test_convert_writes_lists_of_messages(rows: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "convert", lines(tmp_path, rows), "--system", "Be brief.")
    assert code == 0
    written = [json.loads(line) for line in out.splitlines()]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
    assert written[0]["prompt"] == prompt
    assert written[0].keys() == rows[0].keys()
    again = tmp_path / "again.jsonl"
    again.write_text(out, encoding="utf-8")
    code, repeated, _ = run(capsys, "convert", str(again))
    assert (code, repeated) == (0, out)


def test_convert_refuses_files_of_several_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, judged = lines(tmp_path, PAIRS, "pairs.jsonl"), lines(tmp_path, JUDGED, "judged.jsonl")
    code, _, err = run(capsys, "convert", pairs, judged, "-o", str(tmp_path / "out.jsonl"))
    assert code == 2
    assert "judged.jsonl row 1" in err
    assert not (tmp_path / "out.jsonl").exists()
