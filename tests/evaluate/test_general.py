"""The general questions accept their own answers."""

from __future__ import annotations

from weitune.evaluate.general import general_questions, share_right


def test_general_questions_accept_their_own_answers() -> None:
    questions = general_questions()
    assert {question.language for question in questions} == {"en", "zh"}
    assert share_right(questions, [question.answer for question in questions]) == {"en": 1.0, "zh": 1.0}
    assert share_right(questions, ["I cannot say"] * 50) == {"en": 0.0, "zh": 0.0}
    assert len({question.prompt for question in questions}) == 50
