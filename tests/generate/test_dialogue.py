"""A dialogue is remembered, and when it outgrows the model, its oldest turns go."""

from __future__ import annotations

import pytest

from tests.generate.test_engine import tiny_engine
from weitune.data.conversation import Turn
from weitune.errors import InputError
from weitune.generate.dialogue import Dialogue
from weitune.generate.sampling import Sampling

SHORT = Sampling(max_new_tokens=8)


def test_question_and_answer_become_part_of_the_next_prompt() -> None:
    engine, dialogue = tiny_engine(), Dialogue("你是甄嬛。")
    prompts = []
    engine.prompt = lambda conversation, opening=(): prompts.append(conversation) or [1, 2]  # type: ignore[method-assign]
    for question, answer in (("你是谁？", "甄嬛。"), ("Who?", "Me.")):
        dialogue.ask(engine, question, SHORT)
        dialogue.remember(question, answer)
    roles_and_texts = [(turn.role, turn.content) for turn in prompts[-1].turns]
    assert roles_and_texts == [
        ("system", "你是甄嬛。"), ("user", "你是谁？"), ("assistant", "甄嬛。"), ("user", "Who?")
    ]  # fmt: skip


def test_what_the_model_thought_is_kept_apart_for_the_template() -> None:
    dialogue = Dialogue()
    dialogue.remember("Who?", "<think>\nHm.\n</think>\n\nMe.")
    assert dialogue.turns[-1] == Turn("assistant", "Me.", reasoning="Hm.")


def test_asking_is_not_yet_remembering() -> None:
    dialogue = Dialogue()
    dialogue.ask(tiny_engine(), "x", SHORT)
    dialogue.remember("x", "")
    assert dialogue.turns == []
    assert dialogue.last_question is None


def test_history_comes_as_turns_or_messages_and_may_bring_its_system_prompt() -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    dialogue = Dialogue("run's own", [*messages, Turn("assistant", "A")])
    assert dialogue.system == "S"
    assert dialogue.turns == [Turn("user", "Q"), Turn("assistant", "A")]
    for wrong in ({"role": "robot", "content": "x"}, {"role": "user"}, {"content": "x"}):
        with pytest.raises(InputError, match="a turn of the history"):
            Dialogue(history=[wrong])  # type: ignore[list-item]


def test_an_empty_system_prompt_is_a_turn_and_none_is_none() -> None:
    for system, roles in (("", ["system", "user"]), (None, ["user"])):
        _, conversation = Dialogue(system)._fitting(tiny_engine(), Turn("user", "Who?"), SHORT)
        assert [turn.role for turn in conversation.turns] == roles


def test_before_the_last_question_lies_everything_else() -> None:
    turns = [Turn("user", "1"), Turn("assistant", "a"), Turn("user", "2"), Turn("assistant", "b")]
    dialogue = Dialogue("S", turns)
    assert dialogue.last_question == "2"
    earlier = dialogue.before_last_question()
    assert (earlier.system, earlier.turns) == ("S", turns[:2])
    assert dialogue.turns == turns
    assert Dialogue().before_last_question().turns == []


def test_the_oldest_turns_go_when_the_context_is_full() -> None:
    engine, dialogue = tiny_engine(max_position_embeddings=96), Dialogue("Be Tiny.")
    dialogue.turns = [Turn(role, f"{role} {i}") for i in range(6) for role in ("user", "assistant")]  # type: ignore[arg-type]
    before = list(dialogue.turns)
    stream = dialogue.ask(engine, "last", SHORT)
    assert 0 < dialogue.dropped < len(before)
    assert dialogue.turns == before[dialogue.dropped :]
    assert dialogue.turns[0].role == "user"
    assert len("".join(stream)) > 0
    assert len(stream.answer.tokens) == 8  # the answer has its room
    # No more was dropped than had to be: with one exchange more, the answer would not fit.
    larger = Dialogue("Be Tiny.", before[dialogue.dropped - 2 :])
    larger.ask(engine, "last", SHORT)
    assert larger.dropped == 2


def test_a_question_longer_than_the_context_is_refused_and_nothing_is_dropped() -> None:
    engine, dialogue = (
        tiny_engine(max_position_embeddings=64),
        Dialogue(None, [Turn("user", "1"), Turn("assistant", "a")]),
    )
    with pytest.raises(InputError, match="the model takes 64 at most"):
        dialogue.ask(engine, "a long story " * 60, SHORT)
    assert len(dialogue.turns) == 2
    assert dialogue.dropped == 0


def test_what_an_earlier_answer_thought_is_kept_apart_too() -> None:
    history = [
        {"role": "user", "content": "</think>"},
        {"role": "assistant", "content": "Full moon.\n</think>\n\nAt noon."},
    ]
    asked, answered = Dialogue(history=history).turns
    assert (asked.content, asked.reasoning) == ("</think>", None)
    assert (answered.content, answered.reasoning) == ("At noon.", "Full moon.")
