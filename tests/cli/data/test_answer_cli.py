"""``weitune data answer`` as a person uses it: with a base, a run and a server, killed and given again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.generate.test_remote import STREAM, Handler, url
from tests.limits import HANG_SECONDS
from tests.tiny import save_tiny, save_tiny_run
from weitune.cli import main

__all__ = ["url"]  # a fixture
QUESTIONS = ["Who are you?", "What is the capital of France?", "你是谁？"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model"), "qwen2"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_run(tmp_path_factory.mktemp("runs") / "tiny", checkpoints=(5,), system="You are a fisherman."))


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS), encoding="utf-8")
    return str(file)


def answer(*arguments: str, output: Path) -> int:
    return main(["data", "answer", *arguments, "--max-new-tokens", "8", "--output", str(output)])


def rows(file: Path) -> list[list[tuple[str, str]]]:
    read = [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]
    return [[(message["role"], message["content"]) for message in row] for row in read]


def test_a_base_answers_prompts(model: str, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "answers.jsonl"
    assert answer(prompts, "--model", model, output=output) == 0
    assert "3 rows written to" in capsys.readouterr().err
    plain = rows(output)
    assert [[role for role, _ in row] for row in plain] == [["user", "assistant"]] * 3
    assert [row[0][1] for row in plain] == QUESTIONS
    assert answer(prompts, "--model", model, output=output) == 2
    assert "--force" in capsys.readouterr().err
    assert answer(prompts, "--model", model, "--system", "You are a fisherman.", "--force", output=output) == 0
    assert [row[0] for row in rows(output)] == [row[0] for row in plain]
    assert rows(output) != plain
    sampled = tmp_path / "sampled.jsonl"
    options = ["--samples", "2", "--temperature", "1", "--seed", "1", "--limit", "2"]
    assert answer(prompts, "--model", model, *options, output=sampled) == 0
    assert [row[0][1] for row in rows(sampled)] == [QUESTIONS[0]] * 2 + [QUESTIONS[1]] * 2
    assert len({row[1][1] for row in rows(sampled)}) == 4


def test_answers_are_kept_to_a_schema(model: str, prompts: str, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    (tmp_path / "schema.json").write_text('{"enum": ["涨潮", "low"]}', encoding="utf-8")
    options = ["--model", model, "--schema", str(tmp_path / "schema.json"), "--temperature", "2", "--seed", "1"]
    assert answer(prompts, *options, "--samples", "4", output=tmp_path / "answers.jsonl") == 0
    assert {row[1][1] for row in rows(tmp_path / "answers.jsonl")} == {'"涨潮"', '"low"'}


def test_a_run_answers_under_its_own_system_prompt(run: str, prompts: str, tmp_path: Path) -> None:
    own, given, none = (tmp_path / f"{name}.jsonl" for name in ("own", "given", "none"))
    assert answer(prompts, "--run", run, output=own) == 0
    assert answer(prompts, "--run", run, "--system", "You are a fisherman.", output=given) == 0
    assert answer(prompts, "--run", run, "--system", "", output=none) == 0
    assert rows(own) == rows(given) != rows(none)
    assert {row[0][0] for row in rows(own)} == {"user"}
    earlier = tmp_path / "earlier.jsonl"
    assert answer(prompts, "--run", run, "--checkpoint", "5", output=earlier) == 0
    assert rows(earlier) != rows(own)


def test_a_recipe_names_the_rows_that_a_run_answers(run: str, model: str, prompts: str, tmp_path: Path) -> None:
    """Its model is that of a run to come."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"model": model, "data": prompts, "output": str(tmp_path / "new")}), encoding="utf-8")
    assert answer("--recipe", str(recipe), "--run", run, output=tmp_path / "a.jsonl") == 0
    assert answer(prompts, "--run", run, output=tmp_path / "b.jsonl") == 0
    assert rows(tmp_path / "a.jsonl") == rows(tmp_path / "b.jsonl")


def test_a_server_answers(url: str, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Handler.do_GET

    def models(handler: Handler) -> None:
        handler.reply = (200, [b'{"data": [{"id": "m"}]}'])
        listing(handler)

    monkeypatch.setattr(Handler, "do_GET", models)
    Handler.reply = (200, STREAM)
    assert answer(prompts, "--url", url, "--system", "S", output=tmp_path / "answers.jsonl") == 0
    assert [row[1][1] for row in rows(tmp_path / "answers.jsonl")] == ["甄嬛。"] * 3
    bodies = [body for path, _, body in Handler.seen if path.endswith("/completions")]
    assert {body["messages"][0]["content"] for body in bodies} == {"S"}
    assert sorted(body["messages"][1]["content"] for body in bodies) == sorted(QUESTIONS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Say who answers"),
        (["--run", "r", "--url", "http://localhost"], "Say who answers"),
        (["--model", "m", "--checkpoint", "5"], "--checkpoint is of no use"),
        (["--run", "r", "--revision", "x"], "--revision is of no use"),
        (["--run", "nowhere"], "nowhere"),
        (["--model", "nowhere/at all"], "nowhere"),
        (["--model", "m", "--temperature", "-1"], "temperature must be 0 or more"),
        (["--url", "http://127.0.0.1:9"], "127.0.0.1:9"),
    ],
)
def test_what_cannot_be(
    arguments: list[str], said: str, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(prompts, *arguments, output=tmp_path / "answers.jsonl") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_faulty_row_is_named(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": ""}\n', encoding="utf-8")
    assert answer(str(file), "--model", model, output=tmp_path / "answers.jsonl") == 2
    assert "row 2" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_killed_and_given_again_it_ends_as_if_nothing_had_happened(model: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [json.dumps({"prompt": f"{text} {number}"}) for number in range(40) for text in QUESTIONS]
    prompts.write_text("\n".join(rows), encoding="utf-8")
    whole, output, partial = (tmp_path / name for name in ("whole.jsonl", "a.jsonl", ".a.jsonl.partial"))
    arguments = [
        str(prompts), "--model", model, "--train.precision", "fp32",
        "--temperature", "1", "--seed", "3", "--batch-size", "2",
    ]  # fmt: skip
    assert answer(*arguments, output=whole) == 0
    command = [sys.executable, "-m", "weitune", "data", "answer", *arguments, "--max-new-tokens", "8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--output", str(output)], env=environment, stderr=subprocess.PIPE)
    end = time.monotonic() + HANG_SECONDS
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 3):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not output.exists()
    kept = partial.read_bytes().count(b"\n") - 1
    assert 3 <= kept < len(rows)
    assert answer(*arguments, output=output) == 0
    assert output.read_bytes() == whole.read_bytes()
    assert not partial.exists()
