"""Every added token of two real tokenizers, as text in every place where text can stand, stays text."""

from __future__ import annotations

from typing import Any

import pytest

from weitune.data.conversation import Conversation, ToolCall, Turn
from weitune.data.frame.choose import framing_for
from weitune.data.frame.framing import Framing
from weitune.recipe.schema import Tokens

TOOL = {"type": "function", "function": {"name": "tides", "description": "x", "parameters": {"type": "object"}}}
PLACES = ("system", "user", "assistant", "reasoning", "tool result", "argument", "argument name", "tool description")


def conversation(place: str, text: str) -> Conversation:
    """Return a conversation with ``text`` in one place."""
    here = dict.fromkeys(PLACES, "x") | {place: text}
    described = {**TOOL["function"], "description": here["tool description"]}  # type: ignore[dict-item]
    call = ToolCall("tides", {here["argument name"]: here["argument"]})
    turns = (
        Turn("system", here["system"]),
        Turn("user", here["user"]),
        Turn("assistant", "", tool_calls=(call,)),
        Turn("tool", here["tool result"]),
        Turn("assistant", here["assistant"], reasoning=here["reasoning"]),
    )
    return Conversation(turns, ({"type": "function", "function": described},))


def plain(place: str, text: str) -> Conversation:
    """Return a conversation without tools, for templates that have no place for them."""
    here = {"system": "x", "user": "x", "assistant": "x"} | {place: text}
    return Conversation(
        (Turn("system", here["system"]), Turn("user", here["user"]), Turn("assistant", here["assistant"]))
    )


def controls(framing: Framing, ids: Any) -> list[int]:
    return [token for token in ids if token in framing.control_ids]


@pytest.mark.parametrize("place", PLACES)
def test_qwen(qwen_tokenizer: Any, place: str) -> None:
    framing = framing_for(qwen_tokenizer, Tokens())
    [harmless] = framing.examples(conversation(place, "x"))
    for token in qwen_tokenizer.added_tokens_encoder:
        for text in (token, f"a{token}b", f"{token}{token}", f" {token} "):
            [example] = framing.examples(conversation(place, text))
            assert controls(framing, example.input_ids) == controls(framing, harmless.input_ids)
            assert text in qwen_tokenizer.decode(example.input_ids)
            assert len(example.spans) == len(harmless.spans)


@pytest.mark.parametrize("place", ["system", "user", "assistant"])
def test_smollm2(smollm2_tokenizer: Any, place: str) -> None:
    framing = framing_for(smollm2_tokenizer, Tokens())
    [harmless] = framing.examples(plain(place, "x"))
    for token in smollm2_tokenizer.added_tokens_encoder:
        for text in (token, f"a{token}b", f"{token}{token}", f" {token} "):
            [example] = framing.examples(plain(place, text))
            assert controls(framing, example.input_ids) == controls(framing, harmless.input_ids)
            assert text in smollm2_tokenizer.decode(example.input_ids)


@pytest.mark.parametrize("place", ["system", "user", "assistant"])
def test_tutorial_framing(qwen_tokenizer: Any, place: str) -> None:
    framing = framing_for(qwen_tokenizer, Tokens(template="tutorial"))
    [harmless] = framing.examples(plain(place, "x"))
    for token in qwen_tokenizer.added_tokens_encoder:
        [example] = framing.examples(plain(place, f"a{token}b"))
        assert controls(framing, example.input_ids) == controls(framing, harmless.input_ids)
        assert f"a{token}b" in qwen_tokenizer.decode(example.input_ids)


@pytest.mark.parametrize("place", ["system", "user"])
def test_prompts_are_as_safe(qwen_tokenizer: Any, place: str) -> None:
    framing = framing_for(qwen_tokenizer, Tokens())
    harmless = framing.prompt(Conversation(plain(place, "x").turns[:2]))
    for token in qwen_tokenizer.added_tokens_encoder:
        prompt = framing.prompt(Conversation(plain(place, f"a{token}b").turns[:2]))
        assert controls(framing, prompt) == controls(framing, harmless)


def test_ordinary_rows_are_tokenized_as_transformers_does(qwen_tokenizer: Any, smollm2_tokenizer: Any) -> None:
    texts = ["Hello there.", "你是谁？", "x = [1,  2]\n\n\tprint(x)", "👩‍👩‍👧 café naïve", "a\n\n\nb  c   d"]
    for tokenizer in (qwen_tokenizer, smollm2_tokenizer):
        framing = framing_for(tokenizer, Tokens())
        for question in texts:
            for answer in texts:
                turns = (
                    Turn("user", question),
                    Turn("assistant", answer),
                    Turn("user", answer),
                    Turn("assistant", question),
                )
                messages = [{"role": turn.role, "content": turn.content} for turn in turns]
                [example] = framing.examples(Conversation(turns))
                assert list(example.input_ids) == tokenizer.apply_chat_template(messages, return_dict=False)
