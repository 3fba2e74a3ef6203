"""Where JSON begins in the answers of a template."""

from __future__ import annotations

import pytest

from tests.data.calls.test_round_trip import framing_of
from weitune.data.conversation import Conversation, Turn
from weitune.errors import InputError
from weitune.generate.constrain.opening import content_opening

ASKED = (Turn("user", "When is high tide?"),)


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "mistral", "llama3", "gpt-oss"])
def test_content_begins_where_training_has_it(name: str) -> None:
    framing = framing_of(name)
    opening = content_opening(framing)
    assert bool(opening) == (name in {"gpt-oss", "qwen3"})
    learned = framing.examples(Conversation((*ASKED, Turn("assistant", '{"a": 1}'))))[-1].input_ids
    begun = [*framing.prompt(Conversation(ASKED)), *opening]
    assert list(learned[: len(begun)]) == begun
    assert framing.decode(learned[len(begun) :]).strip() == '{"a": 1}'


def test_a_prompt_that_opens_the_reasoning_is_refused() -> None:
    with pytest.raises(InputError, match="the prompt opens the model's reasoning"):
        content_opening(framing_of("minimax-m2"))
