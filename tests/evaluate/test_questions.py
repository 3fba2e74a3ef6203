"""A question is a conversation up to its last assistant turn, which is the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weitune.data.conversation import Conversation, Turn
from weitune.evaluate.questions import question_of, questions_in
from weitune.recipe.preference import Preference
from weitune.recipe.schema import Recipe


def turns(*contents: str) -> Conversation:
    roles: Any = ("user", "assistant")
    return Conversation(tuple(Turn(roles[n % 2], text) for n, text in enumerate(contents)))


def test_the_last_assistant_turn_is_the_reference() -> None:
    question = question_of(turns("a", "b", "c", "d", "e"))
    assert question is not None
    assert (question.text, question.reference) == ("c", "d")
    assert question_of(turns("a")) is None
    assert question_of(turns("a", "  ")) is None


def test_questions_of_preferences(tmp_path: Path) -> None:
    asked = {"prompt": "q", "completion": "a"}
    kinds = {
        "pairs": [{"prompt": "q", "chosen": "a", "rejected": "b"}],
        "judged": [{**asked, "label": True}, {**asked, "prompt": "r", "label": False}],
    }
    for name, rows in kinds.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        recipe = Recipe(model="any", data=[str(path)], system="s", preference=Preference(method="kto"))
        questions = questions_in(recipe.data, recipe)
        assert [(question.text, question.reference) for question in questions] == [("q", "a"), ("r", None)][: len(rows)]
        assert all(question.conversation.system == "s" for question in questions)
        assert [question.text for question in questions_in(recipe.data, recipe, {(str(path), 1)})] == ["q"]
