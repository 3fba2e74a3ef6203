"""The template that an export carries frames as the run does, without being told anything."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny import tiny_tokenizer
from weitune.data.conversation import Conversation, Turn
from weitune.data.frame.choose import framing_for
from weitune.export.source.chat_template import self_contained_template
from weitune.recipe.schema import Tokens

SYSTEM = 'It\'s "you", {{ not }} a {% template %}\\n:\n甄嬛'
ASKED = Conversation((Turn("user", "你是谁？"),))
ASKED_MESSAGES = [{"role": "user", "content": "?"}]
TALKED = Conversation((*ASKED.turns, Turn("assistant", "Me."), Turn("user", "And I?")))


def rendered(tokenizer: Any, template: str, conversation: Conversation, **options: Any) -> list[int]:
    messages = [{"role": turn.role, "content": turn.content} for turn in conversation.turns]
    return list(
        tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, return_dict=False, **options
        )
    )


@pytest.mark.parametrize("family", ["chatml", "chatml-default", "qwen3", "llama3", "mistral", "untemplated-chatml"])
@pytest.mark.parametrize("system", [None, SYSTEM, ""])
@pytest.mark.parametrize("conversation", [ASKED, TALKED])
def test_it_frames_as_training_did(family: str, system: str | None, conversation: Conversation) -> None:
    tokenizer = tiny_tokenizer(family)
    tokens = Tokens(template_args={"enable_thinking": False} if family == "qwen3" else None)
    framing = framing_for(tokenizer, tokens)
    template = self_contained_template(framing, system, "")
    assert rendered(tokenizer, template, conversation) == list(framing.prompt(conversation.with_system(system)))


def test_a_system_message_of_ones_own_wins_and_the_runs_arguments_stay() -> None:
    tokenizer = tiny_tokenizer("qwen3")
    framing = framing_for(tokenizer, Tokens(template_args={"enable_thinking": False}))
    template = self_contained_template(framing, SYSTEM, "")
    own = Conversation((Turn("system", "Mine."), *ASKED.turns))
    assert rendered(tokenizer, template, own) == list(framing.prompt(own))
    assert rendered(tokenizer, template, own, enable_thinking=True) == list(framing.prompt(own))


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_the_tutorials_framing_becomes_a_template(system: str | None) -> None:
    tokenizer = tiny_tokenizer("chatml")
    framing = framing_for(tokenizer, Tokens(template="tutorial"))
    template = self_contained_template(framing, system, tokenizer.pad_token)
    assert rendered(tokenizer, template, ASKED) == list(framing.prompt(ASKED.with_system(system)))
    taught = Conversation((*ASKED.turns, Turn("assistant", "Me."))).with_system(system)
    messages = [{"role": turn.role, "content": turn.content} for turn in taught.turns]
    assert tuple(tokenizer.apply_chat_template(messages, chat_template=template, return_dict=False)) == (
        framing.examples(taught)[0].input_ids
    )


def test_a_second_template_for_tools_is_kept() -> None:
    tokenizer = tiny_tokenizer("chatml")

    class Described:
        def describe(self) -> dict[str, Any]:
            return {"kind": "chat", "template": "{{ 'plain' }}", "template_with_tools": "{{ 'tools' }}",
                    "template_args": {}}  # fmt: skip

    template = self_contained_template(Described(), None, "")  # type: ignore[arg-type]
    assert tokenizer.apply_chat_template(ASKED_MESSAGES, chat_template=template, tokenize=False) == "plain"
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    assert (
        tokenizer.apply_chat_template(ASKED_MESSAGES, chat_template=template, tools=[tool], tokenize=False) == "tools"
    )
