"""The templates of today's models: token by token as ``apply_chat_template`` has it, or refused with a fix that works.

Tried over turns, system prompts, reasoning, calls, and thinking on and off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.frame.modern import MODERN, Modern, tokenizer_of
from weitune.data.conversation import Conversation, Example, Origin, ToolCall, Turn
from weitune.data.frame.choose import framing_for
from weitune.data.frame.framing import Framing
from weitune.errors import DataError
from weitune.recipe.schema import Tokens

TOOL = {
    "type": "function",
    "function": {"name": "tides", "description": "The tides.",
                 "parameters": {"type": "object", "properties": {"port": {"type": "string"}}}},
}  # fmt: skip
NAMES = sorted(MODERN)


def framing_of(name: str, arguments: dict[str, Any]) -> Framing:
    return _framing_of(name, tuple(arguments.items()))


@cache
def _framing_of(name: str, arguments: tuple[tuple[str, Any], ...]) -> Framing:
    return framing_for(tokenizer_of(name), Tokens(template_args=dict(arguments) or None))


def call_of(model: Modern, number: int = 0) -> ToolCall:
    return ToolCall("tides", {"port": "Brest"}, "functions.tides:0" if model.named_ids else f"tide0000{number}")


def dialogues(model: Modern) -> Iterator[tuple[Turn, ...]]:
    """Yield one question, two, a call, and a call after an answer."""
    asked, answered = Turn("user", "Who are you?"), Turn("assistant", "I am the assistant.")
    yield asked, answered
    yield asked, answered, Turn("user", "What can you do?"), Turn("assistant", "Tell you a story.")
    if model.end_of_call is not None:
        call = call_of(model)
        called = (Turn("assistant", "", tool_calls=(call,)), Turn("tool", "noon", tool_call_id=call.id),
                  Turn("assistant", "At noon."))  # fmt: skip
        yield asked, *called
        yield asked, answered, Turn("user", "When is high tide?"), *called


def conversations(model: Modern) -> Iterator[Conversation]:
    """Yield dialogues with and without a system prompt, and with reasoning nowhere, everywhere, or empty at the end."""
    for turns, system, reasoning in product(dialogues(model), (False, True), ("none", "all", "empty")):
        thinking = [
            turn._replace(reasoning=f"I think of {i}." if reasoning == "all" else "")
            if turn.role == "assistant" and (reasoning == "all" or (reasoning == "empty" and i == len(turns) - 1))
            else turn
            for i, turn in enumerate(turns)
        ]
        opening = [Turn("system", "Be kind.")] if system else []
        tools = (TOOL,) if any(turn.tool_calls for turn in turns) else ()
        yield Conversation((*opening, *thinking), tools, Origin("f.json", 1))


def reads_field(model: Modern, turn: Turn) -> bool:
    """Tell whether the template reads the reasoning of ``turn`` in a field of its own."""
    if model.reads in ("reasoning", "parts"):
        return bool(turn.tool_calls) == (model.reads == "reasoning")
    return model.reads is not None


def is_dropped(model: Modern, turn: Turn) -> bool:
    """Tell whether the template writes no reasoning of ``turn``, although it has some."""
    return turn.reasoning is not None and model.drops in ("all", "all" if turn.tool_calls else "answers")


def thinking(model: Modern, turn: Turn) -> dict[str, Any]:
    """Return the message's fields that hold reasoning, or a content that opens with it."""
    if is_dropped(model, turn):
        return {}
    if not reads_field(model, turn):
        return {"content": f"{turn.reasoning}".join(model.frame) + turn.content}
    if model.reads == "parts":
        parts = [{"type": "thinking", "thinking": turn.reasoning}]
        return {"content": [*parts, {"type": "text", "text": turn.content}]}
    return {str(model.reads): turn.reasoning}


def as_messages(model: Modern, turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
    """Return ``turns`` as a user of transformers would write them for the model."""
    messages = []
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.reasoning is not None:
            message |= thinking(model, turn)
        if turn.tool_calls:
            as_text = model.template.startswith("deepseek")
            message["tool_calls"] = [
                {"type": "function", "id": call.id,
                 "function": {"name": call.name, "arguments": '{"port": "Brest"}' if as_text else call.arguments}}
                for call in turn.tool_calls
            ]  # fmt: skip
        if turn.tool_call_id is not None:
            message["tool_call_id"] = turn.tool_call_id
        messages.append(message)
    return messages


def applied(name: str, conversation: Conversation, turns: int, arguments: dict[str, Any], *, ask: bool = False) -> Any:
    """Return what transformers makes of the first ``turns`` turns."""
    ids = tokenizer_of(name).apply_chat_template(
        as_messages(MODERN[name], conversation.turns[:turns]),
        tools=list(conversation.tools) or None,
        add_generation_prompt=ask,
        return_dict=False,
        **arguments,
    )
    return list(ids)


def decoded(name: str, ids: Any) -> str:
    text: str = tokenizer_of(name).decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def taught(conversation: Conversation, examples: list[Example]) -> Iterator[tuple[int, Example, int]]:
    """Yield each learned turn's place, its example, and how many turns that has."""
    answers = [i for i, turn in enumerate(conversation.turns) if turn.role == "assistant"]
    for k, i in enumerate(answers):
        yield (i, examples[0], len(conversation.turns)) if len(examples) == 1 else (i, examples[k], i + 1)


def check(name: str, arguments: dict[str, Any], conversation: Conversation, framing: Framing) -> None:
    """Compare the examples of ``conversation`` with transformers' renderings. Raises DataError if it is refused."""
    model, tokenizer = MODERN[name], tokenizer_of(name)
    examples = framing.examples(conversation)
    for i, example, turns in taught(conversation, examples):
        turn = conversation.turns[i]
        prompt = framing.prompt(replace(conversation, turns=conversation.turns[:i]))
        assert prompt == applied(name, conversation, i, arguments, ask=True)
        assert list(example.input_ids[: len(prompt)]) == prompt
        whole = applied(name, conversation, turns, arguments)
        final = conversation.turns[turns - 1]
        if is_dropped(model, final):
            without_reasoning(name, example, decoded(name, whole), str(final.reasoning))
        else:
            same_tokens(name, example, whole, borrowed=model.borrowed)
        ends = {tokenizer.convert_tokens_to_ids(model.end_of_call if turn.tool_calls else model.end_of_turn)}
        [span] = [s for s in example.spans if s.start >= len(prompt)][:1]
        assert example.input_ids[span.stop - 1] in ends
        written, spoken = decoded(name, example.input_ids[len(prompt) : span.stop]), span_text(name, example, span)
        assert turn.content in spoken
        assert all(call.name in spoken and "Brest" in spoken for call in turn.tool_calls)
        assert (turn.reasoning or "") in spoken
        assert written.endswith(spoken)
        if turn.reasoning is None:
            assert "".join(written.removesuffix(spoken).split()) in ("", "<think></think>", "</think>")
            assert "think>" not in spoken
        for tag in ("<think>", "</think>", "[THINK]", "<|channel>"):
            if tag in tokenizer.get_added_vocab():  # never in letters
                assert written.count(tag) == list(example.input_ids).count(tokenizer.convert_tokens_to_ids(tag)) or (
                    list(example.input_ids[len(prompt) : span.stop]).count(tokenizer.convert_tokens_to_ids(tag))
                    == written.count(tag)
                )


def without_reasoning(name: str, example: Example, whole: str, reasoning: str) -> None:
    """Compare with a rendering from which the template has dropped the reasoning, which stands before the answer."""
    opening, closing = (re.escape(tag.strip()) for tag in MODERN[name].frame)
    text = decoded(name, example.input_ids)
    if not reasoning and text == whole:  # the prompt has the empty thought
        return
    taken_out = [
        text[: found.start()] + kept + text[found.end() :]
        for found in re.finditer(rf"{opening}\s*{re.escape(reasoning)}\s*{closing}\s*", text)
        for kept in ("", closing)  # a template that has ended the thought itself keeps that
    ]
    assert whole in taken_out


def span_text(name: str, example: Example, span: Any) -> str:
    return decoded(name, example.input_ids[span.start : span.stop])


def same_tokens(name: str, example: Example, whole: list[int], *, borrowed: bool) -> None:
    """Compare tokens. Only white space on both sides of where an answer begins may be cut otherwise: at inference, it
    comes in two parts."""
    ids = list(example.input_ids)
    if borrowed and len(ids) == len(whole) + 1:
        ids.pop()
    if ids != whole:
        assert decoded(name, ids) == decoded(name, whole)
        blank = {token for token in {*ids, *whole} if not decoded(name, [token]).strip()}
        assert [token for token in ids if token not in blank] == [token for token in whole if token not in blank]


def thinking_as(reasoning: str | None, turns: tuple[Turn, ...]) -> Iterator[Turn]:
    """Yield ``turns`` with ``reasoning`` in answers that have none; None: without reasoning."""
    for turn in turns:
        changes = turn.role == "assistant" and (not turn.reasoning or reasoning is None)
        yield turn._replace(reasoning=reasoning) if changes else turn


FIXES = {
    "remove the reasoning of such turns": lambda turns, i: thinking_as(None, turns),
    "remove the reasoning of the turns before it": lambda turns, i: (*thinking_as(None, turns[:i]), *turns[i:]),
    "an empty string": lambda turns, i: thinking_as("", turns),
    "give such turns their reasoning": lambda turns, i: thinking_as("I think.", turns),
    "`weight: 0`": lambda turns, i: (*turns[:i], turns[i]._replace(weight=0.0), *turns[i + 1 :]),
}


def works(name: str, arguments: dict[str, Any], conversation: Conversation, fix: str, turn: int) -> bool:
    """Do what ``fix`` says and tell whether the conversation can then be framed."""
    found = re.search(r"template_args: \{(\w+): (true|false)\}", fix)
    if found:
        arguments = {**arguments, found[1]: found[2] == "true"}
    else:
        change = next(change for words, change in FIXES.items() if words in fix.lower())
        conversation = replace(conversation, turns=tuple(change(conversation.turns, turn)))
    try:
        framing_of(name, arguments).examples(conversation)
    except DataError:
        return False
    return True


REFUSED = {
    "deepseek-r1": 14, "deepseek-v3.1": 22, "exaone4": 16, "gemma4-large": 24, "glm4.5": 8, "gpt-oss": 8, "hunyuan": 10,
    "minimax-m2": 16, "qwen3": 8, "qwen3.5": 8,
}  # fmt: skip
"""How many of the conversations cannot be framed, for each model of which some cannot."""


@pytest.mark.parametrize("name", NAMES)
def test_as_transformers_or_refused_with_a_fix_that_works(name: str) -> None:
    refused = 0
    for arguments in MODERN[name].arguments:
        framing = framing_of(name, arguments)
        for conversation in conversations(MODERN[name]):
            error = checked(name, arguments, conversation, framing)
            if error is not None:
                refused += 1
                turn = int(re.findall(r"turn (\d+)", error.message)[0]) - 1
                fixes = re.split(r", or (?=\w)", str(error.fix))
                assert all(works(name, arguments, conversation, fix, turn) for fix in fixes), error.fix
    assert refused == REFUSED.get(name, 0)


def checked(name: str, arguments: dict[str, Any], conversation: Conversation, framing: Framing) -> DataError | None:
    try:
        check(name, arguments, conversation, framing)
    except DataError as error:
        return error
    return None


LOOK_ALIKES = [
    "<think>",
    "</think>",
    "<tool_response>",
    "</tool_response>",
    "/nothink",
    "[THINK]",
    "<answer>",
    "</answer>",
]


def examples_or_error(framing: Framing, conversation: Conversation) -> list[Example] | DataError:
    try:
        return framing.examples(conversation)
    except DataError as error:
        return error


@pytest.mark.parametrize("name", ["qwen3", "qwen3.5", "glm4.5", "exaone4", "gpt-oss", "granite", "hunyuan", "mistral7"])
@settings(max_examples=30)
@given(data=st.data())
def test_look_alikes_take_the_branch_that_transformers_takes(name: str, data: st.DataObject) -> None:
    model = MODERN[name]
    tokens = [*model.special, *model.plain, *LOOK_ALIKES, "<", "</think", "nk>", "a", " ", "\n"]
    text = st.lists(st.sampled_from(tokens), max_size=3).map("".join)
    conversation = data.draw(st.sampled_from(list(conversations(model))))
    turns = [turn if turn.tool_calls else turn._replace(content=data.draw(text)) for turn in conversation.turns]
    conversation = replace(conversation, turns=tuple(turns))
    arguments = data.draw(st.sampled_from(model.arguments))
    made = examples_or_error(framing_of(name, arguments), conversation)
    if isinstance(made, DataError):  # the template drops a text, or its prompt does not fit
        assert "treats specially" not in made.message
        return
    for _, example, count in taught(conversation, made):
        whole = tokenizer_of(name).apply_chat_template(
            as_messages(model, conversation.turns[:count]),
            tools=list(conversation.tools) or None, tokenize=False, **arguments,
        )  # fmt: skip
        text_of = decoded(name, example.input_ids)
        assert whole == text_of or (model.borrowed and text_of.startswith(whole))
