"""The Chinese catalogue says all that the English one says, and the right language is chosen."""

from __future__ import annotations

import json
import pickle
import re
import string
import threading
from pathlib import Path

import pytest

import weitune
from weitune.cli import main
from weitune.errors import RecipeError
from weitune.files.json_files import json_text
from weitune.messages import in_english, say
from weitune.messages.language import choose_language, language, language_in, speaking
from weitune.messages.translate import by_templates, translated

MESSAGES = Path(weitune.__file__).parent / "messages"
ROOMS = sorted(file.stem for file in (MESSAGES / "en").glob("*.json"))
CODE = re.compile(r"`[^`]*`|columns: \{\{.*?\}\}|\{[^{}]*\}|https?://\S+|\b[a-z]+\.[a-z_]+")
VALUE = re.compile(r"columns: \{\{.*?\}\}|\{[^{}]*\}")
WORD = re.compile(r"[A-Za-z][A-Za-z.-]+")


def entries(language: str, room: str) -> dict[str, str | dict[str, str]]:
    file = MESSAGES / language / f"{room}.json"
    found: dict[str, str | dict[str, str]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def parts(entry: str | dict[str, str]) -> dict[str, str]:
    """Return the texts of an entry by their part; forms of number are one part, since Chinese has none."""
    if isinstance(entry, str):
        return {"": entry}
    return {"": entry["other"]} if "one" in entry else entry


def fields(text: str) -> set[tuple[str, str | None, str | None]]:
    return {(name, kind, spec) for _, name, spec, kind in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("room", ROOMS)
def test_chinese_has_every_message_with_the_same_values(room: str) -> None:
    english, chinese = entries("en", room), entries("zh", room)
    assert list(chinese) == list(english)
    for name, entry in english.items():
        here, there = parts(entry), parts(chinese[name])
        assert here.keys() == there.keys(), name
        for part, text in here.items():
            assert there[part].strip(), (name, part)
            assert fields(there[part]) == fields(text), (name, part)


@pytest.mark.parametrize("room", ROOMS)
def test_chinese_is_chinese_and_set_as_such(room: str) -> None:
    for name, entry in entries("zh", room).items():
        for text in parts(entry).values():
            bare = CODE.sub("", text)
            assert re.search(r"[\u4e00-\u9fff]", bare) or len(WORD.findall(bare)) < 2, (name, text)
            assert not re.search(r"[\u4e00-\u9fff][A-Za-z0-9`]|[A-Za-z0-9`][\u4e00-\u9fff]", VALUE.sub("", text)), (
                name,
                text,
            )
            assert not re.search(r"[\u4e00-\u9fff][,;!?]|[\u4e00-\u9fff]\.(?:\s|$)", bare), (name, text)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "de_DE.UTF-8", "WEITUNE_LANG": "zh"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "WEITUNE_LANG": "en"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": ""}, "zh"),
    ],
)
def test_the_environment_chooses_a_language(environment: dict[str, str], expected: str) -> None:
    assert language_in(environment) == expected


def test_a_chosen_language_is_before_the_environment_and_a_block_before_both() -> None:
    try:
        choose_language("zh")
        assert language() == "zh"
        with speaking("en"):
            assert language() == "en"
        elsewhere: list[str] = []
        with speaking("en"):
            thread = threading.Thread(target=lambda: elsewhere.append(language()))
            thread.start()
            thread.join()
        assert elsewhere == ["zh"]
    finally:
        choose_language(None)
    assert language() == "en"  # as tests/conftest.py asks of the environment


def test_a_message_in_chinese_knows_itself_in_english_and_json_is_english() -> None:
    with speaking("zh"):
        inner = say("recipe.kind.list")
        outer = say("recipe.problems.found", said=say("recipe.problems.must_be", expected=inner), value=3)
        told = json_text({"why": [outer], "where": inner})
    assert outer == "必须是列表；实际是 3"
    assert in_english(outer) == "must be a list; found 3"
    assert json.loads(told) == {"why": ["must be a list; found 3"], "where": "a list"}
    assert json.loads(json_text({"why": outer})) == {"why": "must be a list; found 3"}
    assert in_english(pickle.loads(pickle.dumps(outer))) == "must be a list; found 3"  # noqa: S301


def test_an_error_is_told_in_the_language_of_the_user() -> None:
    with speaking("zh"):
        error = RecipeError("recipe.load.no_such_recipe", name="x.yaml", presets="demo")
    assert str(error) == "没有配置文件 'x.yaml'\n给出 YAML 文件的路径，或者一个预设的名字：demo。"


def test_an_english_text_is_recognised_by_its_template() -> None:
    with speaking("zh"):
        assert translated("a list", "recipe") == "列表"
        assert translated("no message says this", "recipe") == "no message says this"
        assert translated("missing x is not a message", "files", "recipe") == "missing x is not a message"
    assert translated("a list", "recipe") == "a list"
    assert by_templates("3 of 10", {"{part} of {whole}": "{whole} 中的 {part}"}) == "10 中的 3"


def test_an_id_without_chinese_is_told_in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    from weitune import messages

    whole = messages.catalogue
    monkeypatch.setattr(messages, "catalogue", lambda room, here="en": whole(room, "en") if here == "en" else {})
    with speaking("zh"):
        assert say("recipe.kind.list") == "a list"


def test_the_option_stands_anywhere_and_is_before_the_environment(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["--language", "zh", "plan"], ["plan", "--language=zh"], ["plan", "--language", "zh", "--help"]):
        main(arguments)
        out, err = capfd.readouterr()
        assert "用法：" in out + err, arguments
    monkeypatch.setenv("WEITUNE_LANG", "zh")
    main(["--language", "en", "plan"])
    assert "Usage:" in capfd.readouterr().err
    assert main(["--language", "fr", "plan"]) == 2
    assert "'fr'" in capfd.readouterr().err
    assert main(["chat", "--", "--language"]) == 2  # after two dashes it is the name of a run
    assert "'--language'" in capfd.readouterr().err
    choose_language(None)
