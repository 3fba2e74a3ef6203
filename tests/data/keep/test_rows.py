"""Files of prompts and of dialogues, and two shipped sets that have nothing in common."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest

from weitune.data.formats.parse import Options
from weitune.data.keep.rows import read_keep_rows, shipped_prompts
from weitune.errors import DataError
from weitune.evaluate.general import general_questions

_CJK = "\u3400-\u9fff"
_UNIT = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_RUN = 8


def units(text: str) -> list[str]:
    return _UNIT.findall(unicodedata.normalize("NFKC", text).lower())


def runs(text: str) -> set[tuple[str, ...]]:
    words = units(text)
    return {tuple(words[at : at + _RUN]) for at in range(len(words) - _RUN + 1)}


def sentences(text: str) -> set[str]:
    """Return the sentences of ``text``, and what stands before colons, without their numbers."""
    parts = [" ".join(units(part)) for part in re.split(r"[.?!。？！；;:：]", text)]
    return {re.sub(r"\d+|[零一二三四五六七八九十百两]+", "#", part) for part in parts if len(part.split()) >= 3}


def write(folder: Path, name: str, rows: list[object]) -> str:
    (folder / name).write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return str(folder / name)


def test_at_least_300_prompts_ship_in_each_language() -> None:
    prompts = [conversation.turns[0].content for conversation in shipped_prompts()]
    chinese = [prompt for prompt in prompts if re.search(f"[{_CJK}]", prompt)]
    assert len(chinese) >= 300
    assert len(prompts) - len(chinese) >= 300
    assert len({" ".join(units(prompt)) for prompt in prompts}) == len(prompts)


def test_no_check_question_is_among_the_prompts() -> None:
    questions = [question.prompt for question in general_questions()]
    prompts = [conversation.turns[0].content for conversation in shipped_prompts()]
    assert not {" ".join(units(question)) for question in questions} & {" ".join(units(each)) for each in prompts}
    known = {run for prompt in prompts for run in runs(prompt)}
    assert [question for question in questions if runs(question) & known] == []
    forms = {form for prompt in prompts for form in sentences(prompt)}
    assert [question for question in questions if sentences(question) & forms] == []


def test_no_prompt_asks_who_the_model_is() -> None:
    prompts = [conversation.turns[0].content.lower() for conversation in shipped_prompts()]
    of_persona = re.compile(
        r"who are you|your name|are you a |do you have feelings|你是谁|你叫什么|你是真人|你有感情|你是人"
    )
    assert [prompt for prompt in prompts if of_persona.search(prompt)] == []


def test_prompts_and_dialogues_are_told_apart(tmp_path: Path) -> None:
    prompts = write(tmp_path, "prompts.jsonl", [{"prompt": "Hi", "language": "en"}, {"prompt": "Bye"}])
    dialogues = write(tmp_path, "rows.jsonl", [{"prompt": "Hi", "completion": "Ho"}])
    rows = read_keep_rows([prompts, dialogues], Options())
    assert [conversation.turns[0].content for conversation in rows.prompts] == ["Hi", "Bye"]
    assert [[turn.content for turn in told.turns] for told in rows.dialogues] == [["Hi", "Ho"]]


@pytest.mark.parametrize(
    ("row", "told"),
    [({"prompt": " "}, "blank prompt"), ({"prompt": "x", "completion": "y"}, "completion"), ([1], "list"), ({}, "")],
)
def test_a_faulty_row_is_named(row: object, told: str, tmp_path: Path) -> None:
    file = write(tmp_path, "prompts.jsonl", [{"prompt": "Hi"}, row])
    with pytest.raises(DataError) as raised:
        read_keep_rows([file], Options())
    assert "prompts.jsonl, row 2" in str(raised.value) or "row 2" in str(raised.value)
    assert told in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        read_keep_rows([str(tmp_path / "nowhere.jsonl")], Options())


def test_the_shipped_prompts_have_names() -> None:
    english, chinese = (read_keep_rows([f"builtin:prompts-{language}"], Options()).prompts for language in ("en", "zh"))
    assert [*english, *chinese] == shipped_prompts()
    assert not re.search(f"[{_CJK}]", english[0].turns[0].content)


def test_half_a_surrogate_pair_names_its_row(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi"}\n{"prompt": "caf\\ud83d"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="row 2"):
        read_keep_rows([str(tmp_path / "prompts.jsonl")], Options())
