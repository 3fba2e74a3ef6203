"""Answers to the same prompts become pairs, in order; equal ones and those without a partner are told apart."""

from __future__ import annotations

import pytest

from weitune.data.conversation import Conversation, Turn
from weitune.data.preference.join import join_answers
from weitune.errors import DataError


def answered(*texts: str, system: str | None = None) -> Conversation:
    roles = ("user", "assistant") * len(texts)
    turns = tuple(Turn(role, text) for role, text in zip(roles, texts, strict=False))
    return Conversation(turns).with_system(system)


def test_answers_to_a_prompt_are_joined_in_order() -> None:
    joined = join_answers([answered("q", "a"), answered("q", "b")], [answered("q", "c"), answered("q", "d")])
    assert [(pair.chosen[0].content, pair.rejected[0].content) for pair in joined.pairs] == [("a", "c"), ("b", "d")]
    assert joined.pairs[0].prompt.turns == (Turn("user", "q"),)
    assert (joined.equal, joined.alone) == (0, [])


def test_a_single_answer_is_joined_with_all_of_the_other_file() -> None:
    several, single = [answered("q", text) for text in "abc"], [answered("q", "z")]
    assert [pair.chosen[0].content for pair in join_answers(several, single).pairs] == ["a", "b", "c"]
    assert [pair.rejected[0].content for pair in join_answers(single, several).pairs] == ["a", "b", "c"]


def test_equal_answers_make_no_pair() -> None:
    joined = join_answers([answered("q", "a"), answered("p", "b")], [answered("q", " a\n"), answered("p", "c")])
    assert [pair.chosen[0].content for pair in joined.pairs] == ["b"]
    assert joined.equal == 1


def test_answers_without_a_partner_are_named() -> None:
    joined = join_answers(
        [answered("q", "a"), answered("p", "b"), answered("p", "c"), answered("p", "d")],
        [answered("r", "e"), answered("p", "f"), answered("p", "g")],
    )
    assert [pair.rejected[0].content for pair in joined.pairs] == ["f", "g"]
    assert sorted(alone.turns[-1].content for alone in joined.alone) == ["a", "d", "e"]


def test_the_whole_dialogue_before_the_last_answer_is_the_prompt() -> None:
    long, other = answered("q", "a", "p", "b"), answered("q", "x", "p", "b")
    assert join_answers([long], [other]).pairs == []
    assert join_answers([answered("q", "a", system="S")], [answered("q", "b")]).pairs == []
    (pair,) = join_answers([long], [answered("q", "a", "p", "c")]).pairs
    assert pair.prompt.turns == long.turns[:3]


def test_weights_mean_nothing_for_pairs() -> None:
    one, other = (
        Conversation(
            (Turn("user", "q"), Turn("assistant", "so", weight), Turn("user", "p"), Turn("assistant", text, 0.5))
        )
        for weight, text in ((0.0, "a"), (1.0, "b"))
    )
    (pair,) = join_answers([one], [other]).pairs
    assert {turn.weight for turn in (*pair.prompt.turns, *pair.chosen, *pair.rejected)} == {1.0}


def test_a_conversation_that_ends_without_an_answer_is_refused() -> None:
    with pytest.raises(DataError, match="ends without an answer"):
        join_answers([answered("q", "a", "and now?")], [answered("q", "b")])
