"""Every command as it is used in Chinese: no message is left in English, and what programs read is English."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import save_tiny
from weitune.cli import COMMANDS, main
from weitune.messages.language import choose_language

CHINESE = re.compile(r"[\u4e00-\u9fff]")
ENGLISH = re.compile(r"[A-Za-z]{2,} [a-z]{2,} [a-z]{2,}")
"""Three words in a row, which nothing but an English sentence has."""
CODE = re.compile(r"`[^`]*`|weitune \S+ .*|\S*/\S*|'[^']*'")
"""Commands, paths and values, which are the same in every language."""
SAMPLE = re.compile(r"→|^  (base|last|数据) |^│")
"""A line with what a model answered."""


@pytest.fixture(autouse=True, scope="module")
def _chinese(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
    choose_language(None)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, rows, and two runs that were trained in Chinese."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model")
    rows = [{"instruction": f"你是谁{i}", "input": "", "output": "我是看门人。"} for i in range(12)]
    rows.append({"instruction": "讲一个故事", "input": "", "output": "从前有一座山。" * 60})
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "bad.jsonl").write_text('{"instruction": "a", "output": 3}\n{"x": 1}\nnope\n', encoding="utf-8")
    common = ["train", *given(folder), "--train.batch_size", "4", "--tokens.max_length", "200", "--train.epochs", "1"]
    assert say([*common, "--output", str(folder / "a"), "--validation", "0.25", "--train.evaluate_every", "2"]) == 0
    assert say([*common, "--output", str(folder / "b")]) == 0
    return folder


def given(folder: Path) -> list[str]:
    return ["--model", str(folder / "model"), "--data", str(folder / "rows.json"), "--device", "cpu"]


def say(arguments: list[str]) -> int:
    return main(["--language", "zh", *arguments])


TYPED = [
    "train {given} --output {place}/a",
    "train {given} --train.epochs x --lora.r 0 --tokens.truncation x",
    "train --model {place}/model --data {place}/bad.jsonl --output {place}/c",
    "train --model {place}/nothing --data {place}/rows.json --output {place}/c",
    "train --resume {place}/a",
    "train --resume {place}/b --train.epochs 2",
    "plan {given} --gpu H100",
    "tune {given} --output {place}/search --train.batch_size 4 --train.epochs 1",
    "watch {place}/a",
    "watch {place}/a --once",
    "watch {place}/a --alive",
    "chat {place}/a --prompt 你好 --max-new-tokens 4",
    "chat {place}/nothing --prompt 你好",
    "eval {place}/a --limit 2 --no-general --max-new-tokens 4 --training-rows 2",
    "eval {place}/b --no-general",
    "compare {place}/a {place}/b",
    "report {place}/a {place}/b",
    "export {place}/a --format merged --prompts 2",
    "export {place}/a --format merged",
    "push {place}/a --to u/n --dry-run",
    "merge-adapters {place}/a {place}/b --output {place}/ab",
    "serve {place}/a --dry-run",
    "cache",
    "cache clear --dry-run",
    "data check {place}/rows.json",
    "data check {place}/bad.jsonl",
    "data check {place}/nothing.json",
    "data preview {place}/rows.json --model {place}/model --row 1",
    "data preview {place}/rows.json --model {place}/model --html {place}/page.html",
    "data convert {place}/rows.json -o {place}/rows.jsonl",
    "data answer {place}/rows.json --model {place}/model -o {place}/answers.jsonl --max-new-tokens 4 --limit 3",
    "data pair --chosen {place}/rows.json --rejected {place}/answers.jsonl -o {place}/pairs.jsonl --drop-unmatched",
    "train --model {place}/model --data {place}/pairs.jsonl --preference.method dpo --output {place}/p --device cpu",
    "data check {place}/pairs.jsonl",
    "demo --questions {place}/a",
]


@pytest.mark.parametrize("typed", TYPED)
def test_no_message_is_in_english(typed: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if typed.startswith("serve"):
        pytest.importorskip("xllamacpp")
    arguments = [word.format(place=place) for word in typed.split() if word != "{given}"]
    if "{given}" in typed:
        arguments[1:1] = given(place)
    assert say(arguments) in {0, 2, 4}
    shown = capsys.readouterr()
    lines = (shown.out + shown.err).splitlines()
    assert any(CHINESE.search(line) for line in lines)
    told = [CODE.sub("", line) for line in lines if not SAMPLE.search(line)]
    assert [line for line in told if ENGLISH.search(line)] == []


def test_every_command_was_typed() -> None:
    assert {line.split()[0] for line in TYPED} == set(COMMANDS)


def test_what_programs_read_is_english(place: Path) -> None:
    told = list(_texts(json.loads((place / "a" / "environment.json").read_text(encoding="utf-8"))))
    account = json.loads((place / "a" / "data.json").read_text(encoding="utf-8"))
    told += re.findall(r'"place": "([^"]*)"', json.dumps(account, ensure_ascii=False))
    reasons = [name for name in _keys(account) if "200" in name]
    assert reasons == ["longer than 200 tokens"] * len(reasons)
    assert reasons
    events = [json.loads(line) for line in (place / "a" / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    told += [str(event.get(key, "")) for event in events for key in ("event", "reason", "message", "notes")]
    assert [text for text in told if CHINESE.search(text)] == []


def _texts(tree: object) -> Iterator[str]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value)
    elif isinstance(tree, str):
        yield tree


def _keys(tree: object) -> Iterator[str]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key
            yield from _keys(value)


def test_a_reason_that_was_kept_in_english_is_told_in_chinese(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["train", *given(place), "--tokens.max_length", "200", "--train.max_steps", "1"]
    assert say([*again, "--output", str(place / "again")]) == 0  # its account is read from the cache
    assert "搁置：1 条，超过 200 个 token" in capsys.readouterr().err
