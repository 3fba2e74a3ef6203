"""A question is a conversation up to its last assistant turn, which is the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weitune.data.conversation import Conversation, Example, Origin, Span, Turn
from weitune.evaluate.evaluation_set import Question, first_questions, question_of, questions_in
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
    unlearned = Conversation((Turn("user", "a"), Turn("assistant", "b", weight=0.0)))
    assert question_of(unlearned) is None


def test_an_answer_is_compared_without_its_thought() -> None:
    thinking = Conversation((Turn("user", "a"), Turn("assistant", "At noon.", reasoning="The moon is full.")))
    question = question_of(thinking)
    assert question == Question(Conversation((Turn("user", "a"),)), "At noon.", "The moon is full.")
    assert question.is_answer("<think>\nSomething else.\n</think>\n\nAt  noon.")
    assert not question.is_answer("<think>\nThe moon is full.\n</think>\n\nAt ten.")
    assert not Question(thinking).is_answer("")


def test_the_first_questions_may_have_tool_calls_before_them(tmp_path: Path) -> None:
    """Arguments of calls are mappings, which cannot be hashed."""
    call = {"type": "function", "function": {"name": "tides", "arguments": {"day": {"of": "week"}}}}

    def row(day: str, answer: str) -> dict[str, Any]:
        called = {"role": "assistant", "content": "", "tool_calls": [call]}
        told = [{"role": "tool", "content": "noon"}, {"role": "assistant", "content": answer}]
        return {"messages": [{"role": "user", "content": f"When is high tide {day}?"}, called, *told]}

    path = tmp_path / "calls.jsonl"
    rows = [row("today", "At noon."), row("today", "At twelve."), row("tomorrow", "At one.")]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    recipe = Recipe(model="any", data=[str(path)])
    examples: Any = [Example((1, 2), (Span(1, 2),), Origin(str(path), n)) for n in (1, 2, 3)]
    found = first_questions(examples, recipe.data, recipe, 5)
    assert [question.reference for question in found] == ["At noon.", "At one."]


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
