"""The shipped data sets are what their README says: valid, free of duplicates, and without the demo's questions."""

import json
import re
from pathlib import Path

import pytest

import weitune.data

FOLDER = Path(weitune.data.__file__).parent / "builtin"
NAMES = ("captain-en", "storyteller-zh")
ADDRESS = {"captain-en": "shipmate", "storyteller-zh": "客官"}


def dialogues(name):
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == "", "the last line must end"
    return [json.loads(line)["messages"] for line in lines]


def bare(text):
    """Reduce ``text`` to its letters and digits, so that punctuation and case cannot hide a repetition."""
    return re.sub(r"[\W_]+", "", text).casefold()


def readme_row(name):
    return next(line for line in readme_lines() if line.startswith(f"| `{name}` | 1")).split("|")


def readme_lines():
    return (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()


def demo_questions(name):
    """Return the questions that the README promises to keep out of the data set ``name``."""
    lines = readme_lines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| `captain-en` | `storyteller-zh` |"))
    column = NAMES.index(name) + 1
    return [line.split("|")[column].strip() for line in lines[start + 2 : start + 5]]


def test_every_shipped_file_is_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.jsonl")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_turns_alternate_and_end_with_the_assistant(name):
    for messages in dialogues(name):
        roles = [message["role"] for message in messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2), messages
        assert roles


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_clean(name):
    for message in (message for messages in dialogues(name) for message in messages):
        assert set(message) == {"role", "content"}
        text = message["content"]
        assert text, "an empty turn"
        assert text == text.strip()
        assert "  " not in text
        assert text.isprintable(), "a control character"


@pytest.mark.parametrize("name", NAMES)
def test_no_dialogue_opens_like_another_and_no_answer_repeats(name):
    openings = [bare(messages[0]["content"]) for messages in dialogues(name)]
    answers = [bare(m["content"]) for messages in dialogues(name) for m in messages if m["role"] == "assistant"]
    assert len(set(openings)) == len(openings)
    assert len(set(answers)) == len(answers)


@pytest.mark.parametrize("name", NAMES)
def test_the_persona_never_drops_its_form_of_address(name):
    answers = [m["content"] for messages in dialogues(name) for m in messages if m["role"] == "assistant"]
    assert [answer for answer in answers if ADDRESS[name] not in answer] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_demo_questions_are_not_in_the_data(name):
    questions = demo_questions(name)
    assert len(questions) == 3
    assert all(questions)
    asked = {bare(m["content"]) for messages in dialogues(name) for m in messages if m["role"] == "user"}
    assert not asked & {bare(question) for question in questions}


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_counts_are_true(name):
    rows = dialogues(name)
    _, _, count, several, *_ = readme_row(name)
    assert int(count) == len(rows)
    assert int(several) == sum(len(messages) > 2 for messages in rows)
