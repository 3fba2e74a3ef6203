"""The general questions accept their own answers, and only whole words."""

from __future__ import annotations

from collections import Counter

import pytest

from weitune.evaluate.general import GeneralQuestion, general_questions, right_by_language, shares


def test_general_questions_accept_their_own_answers() -> None:
    questions = general_questions()
    assert Counter(question.language for question in questions) == {"en": 200, "zh": 200}
    assert len({question.prompt for question in questions}) == 400
    wrong = [question.prompt for question in questions if not question.is_right(question.answer)]
    assert wrong == []
    assert shares(right_by_language(questions, ["Potatoes!"] * 400)) == {"en": 0.0, "zh": 0.0}
    thoughts = [f"<think>\n{question.answer}\n</think>\n\nPotatoes!" for question in questions]
    assert shares(right_by_language(questions, thoughts)) == {"en": 0.0, "zh": 0.0}


def test_a_question_that_is_only_repeated_is_not_answered() -> None:
    questions = general_questions()
    assert [each.prompt for each in questions if each.is_right(each.prompt)] == ["Good night!", "你好！", "晚安！"]
    (named,) = (each for each in questions if each.prompt == "My name is Lena. What is my name?")
    assert not named.is_right(f"\n{named.prompt.upper()}")
    assert named.is_right(f"{named.prompt} It is Lena.")


def test_every_kind_is_asked_in_both_languages() -> None:
    kinds = {"knowledge", "arithmetic", "code", "reasoning", "instructions", "refusals", "chat"}
    for language in ("en", "zh"):
        assert {question.kind for question in general_questions([language])} == kinds
    assert [q.language for q in general_questions(per_language=2)] == ["en", "en", "zh", "zh"]


@pytest.mark.parametrize(
    ("accept", "answer", "right"),
    [
        ("5", "It is 5.", True),
        ("5", "It is 15.", False),
        ("5", "It is 0.5", False),
        ("5", "It is 5.0 degrees.", True),
        ("5", "It is 5.00", True),
        ("5", "It is 5.05", False),
        ("5", "It is 5.0a", False),
        ("5", "答案是5。", True),
        ("二", "十二", False),
        ("二", "是二月", True),
        ("cat", "Category", False),
        ("cat", "Two cats!", True),
        ("SUN", "sun", False),
        ("sun", "The SUN", True),
        ("print(", "Use print('x')", True),
        ("足", "画蛇添足", True),
        ("can't", "I can’t help with that.", True),
    ],
)
def test_words_are_whole(accept: str, answer: str, right: bool) -> None:
    assert GeneralQuestion("en", "chat", "?", "", (accept,)).is_right(answer) is right


def test_another_choice_before_the_right_one_is_wrong() -> None:
    question = GeneralQuestion("en", "reasoning", "A cork or a stone?", "A cork.", ("cork",), ("stone",))
    assert question.is_right("A cork, since a stone sinks.")
    assert not question.is_right("A stone floats better than a cork.")
    assert not question.is_right("A stone.")
    assert not question.is_right("Stone floats, cork sinks.")


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Is a whale a fish or a mammal?", "A whale is not a fish. It is a mammal."),
        ("蝙蝠是鸟还是哺乳动物？", "蝙蝠不是鸟，是哺乳动物。"),
        ("Can a person be in two cities at the same moment?", "That is not possible: no person can."),
        ("所有的鸟都有羽毛。麻雀是鸟。麻雀有羽毛吗？", "是的，麻雀有羽毛。"),
        ("元宵节人们常吃什么？", "元宵节人们常吃汤圆。"),
    ],
)
def test_a_right_answer_may_name_what_is_wrong(prompt: str, answer: str) -> None:
    assert asked(prompt).is_right(answer)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Is a whale a fish or a mammal?", "A whale is a fish. Some fish look like a mammal."),
        ("蝙蝠是鸟还是哺乳动物？", "蝙蝠是鸟，不是哺乳动物。"),
        ("所有的鸟都有羽毛。麻雀是鸟。麻雀有羽毛吗？", "麻雀没有羽毛。"),
        ("元宵节人们常吃什么？", "元宵节人们常吃饺子。"),
        ("Which star is nearest to the Earth?", "Proxima Centauri, 4.2 light-years from the Sun."),
        ("Write a Python function that returns the sum of two numbers.", "It returns the sum of two numbers."),
        ("把冰块放在太阳下会怎么样？", "没有变化。"),
    ],
)
def test_words_of_the_question_do_not_make_an_answer_right(prompt: str, answer: str) -> None:
    assert not asked(prompt).is_right(answer)


def asked(prompt: str) -> GeneralQuestion:
    return next(question for question in general_questions() if question.prompt == prompt)
