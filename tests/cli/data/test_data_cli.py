"""``weitune data`` as a person uses it: every malformed file, then check, preview and convert."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.data.files import ALPACA, write
from tests.data.read.malformed import Malformed, corpus
from tests.tiny import save_tiny
from weitune.cli import main

CORPUS = list(corpus())


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


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 200
    assert len({malformed.name for malformed in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("malformed", CORPUS, ids=lambda malformed: malformed.name)
def test_malformed_files(malformed: Malformed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / malformed.name
    path.write_bytes(malformed.content)
    code, out, err = run(capsys, "check", str(path))
    said = out + err
    assert code == 2
    assert "Traceback" not in said
    assert malformed.name in said
    assert "fix: " in said
    assert "not ready" in said
    if malformed.row is not None:
        assert f"row {malformed.row}" in said

    code, out, err = run(capsys, "check", str(path), "--json")
    assert code == 2
    found = [problem for group in json.loads(out)["problems"] for problem in group["problems"]]
    assert all(problem["file"] == str(path) and problem["expected"] and problem["found"] for problem in found)
    assert malformed.row in {problem["row"] for problem in found} or malformed.row is None

    code, _, err = run(capsys, "convert", str(path), "-o", str(tmp_path / "out.jsonl"))
    assert code == 2
    assert "error: the data have" in err
    assert not (tmp_path / "out.jsonl").exists()


def test_training_on_a_malformed_file_leaves_no_run(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"instruction": "q"}]', encoding="utf-8")
    code = main(["train", "--model", model, "--data", str(path), "--output", str(tmp_path / "run")])
    assert code == 2
    assert "field `output`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_check_without_a_model(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", str(write(tmp_path, kind)))
    assert code == 0
    assert "3 rows read = 3 trained + 0 set aside" in out
    assert "ready to train" in out
    assert "characters" in out


def test_check_with_a_model(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path, "json", [*ALPACA, ALPACA[0]]))
    code, out, _ = run(capsys, "check", path, "--model", model, "--train.batch-size", "2")
    assert code == 0
    assert "1 exact copy of an earlier row" in out
    assert "2 optimizer steps an epoch" in out
    assert "their prefix is shared" in out
    code, out, _ = run(capsys, "check", path, "--model", model, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["ready"] is True
    assert report["rows"]["read"] == report["rows"]["trained"] == 4
    assert report["tokens"]["all"] > report["tokens"]["supervised"] > 0
    assert 0 < report["saved_by_sharing"] < 1


def test_check_says_when_nothing_is_left(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path, "json"))
    code, out, _ = run(capsys, "check", path, "--model", model, "--tokens.max-length", "5")
    assert code == 2
    assert "3 longer than 5 tokens" in out


def test_a_recipe_file_names_data_and_options(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path, "csv", [{"问题": "q", "回答": "a"}])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {model}\ndata: {data}\ncolumns: {{user: 问题, assistant: 回答}}\nsystem: Be brief.\n", encoding="utf-8"
    )
    code, out, _ = run(capsys, "preview", "--recipe", str(recipe))
    assert code == 0
    assert "<|im_start|>system\nBe brief.<|im_end|>" in out


def test_preview_shows_the_row_asked_for(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path, "jsonl"))
    code, out, _ = run(capsys, "preview", path, "--model", model, "--row", "2")
    assert code == 0
    assert "row 2 (line 2)" in out
    assert "<|im_start|>user\nAdd.\n1, 2<|im_end|>" in out
    assert 'learned: It is "3".\nSure.<|im_end|>' in out
    assert "row 1" not in out
    code, _, err = run(capsys, "preview", path, "--model", model, "--row", "9")
    assert code == 2
    assert "no row 9" in err


def test_preview_wants_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "preview", str(write(tmp_path, "json")))
    assert code == 2
    assert "--model" in err


class Page(HTMLParser):
    """Collects what a browser would show."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []
        self.learned: list[str] = []
        self.text = ""
        self.loads: list[str] = []
        self._marked = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "article":
            self.rows.append(named)
        self.loads += [value for key, value in attrs if key in {"src", "href"} and value]
        self._marked = tag == "mark"

    def handle_endtag(self, tag: str) -> None:
        if tag == "mark":
            self._marked = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._marked:
            self.learned.append(data)


def test_the_page_is_one_file_that_can_be_filtered(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Any] = [
        *ALPACA,
        {"instruction": "<script>alert(1)</script>", "output": "</mark> & <|im_end|>"},
        {"a": 1},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    code, _, err = run(capsys, "preview", str(path), "--model", model, "--html", str(tmp_path / "page.html"))
    assert code == 0
    assert "5 examples written" in err
    page = Page()
    page.feed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.loads == []
    assert "<script>alert(1)</script>" in page.text
    assert "</mark> & <|im_end|><|im_end|>" in page.learned
    assert [row["data-tags"] for row in page.rows] == ["", "", "", "", "faulty"]
    assert all(int(row["data-tokens"]) > 0 for row in page.rows[:4])


def test_convert_writes_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path, "csv"))
    code, out, err = run(capsys, "convert", path, "--system", "Be brief.")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows[0] == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "你是谁？"},
            {"role": "assistant", "content": "我是甄嬛。"},
        ]
    }
    assert "3 rows" in err
    target = tmp_path / "clean.jsonl"
    assert run(capsys, "convert", path, "-o", str(target))[0] == 0
    assert run(capsys, "convert", path, "-o", str(target))[0] == 2
    assert run(capsys, "convert", path, "-o", str(target), "--force")[0] == 0
    assert len(target.read_text(encoding="utf-8").splitlines()) == 3


def test_convert_says_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("instruction,output,mood\nhi,hello,good\n,,\n", encoding="utf-8")
    code, out, err = run(capsys, "convert", str(path))
    assert (code, len(out.splitlines())) == (0, 1)
    assert "mood (1)" in err
    assert "set aside: 1 with only empty cells" in err


@pytest.mark.parametrize("arguments", [["check"], ["preview"], ["convert"]])
def test_files_must_be_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "Name at least one file" in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--format", "alpacca"], "format: must be"),
        (["--columns", "{user: a}"], "no column for 'assistant'"),
        (["--weights", "{x.json: 2}"], "not one of the files"),
    ],
)
def test_options_that_cannot_be(
    flags: list[str], said: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "check", str(write(tmp_path, "json")), "--model", model, *flags)
    assert code == 2
    assert said in err


@pytest.mark.parametrize("command", ["check", "preview", "convert"])
def test_help_is_complete(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "FILES" in out
    assert "--format" in out
