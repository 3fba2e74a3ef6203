"""A chat template, and the text it makes of a conversation.

Rendering is transformers' sandboxed Jinja, the very function behind ``apply_chat_template``. A :class:`Script` is one
conversation under one template: it renders any number of its turns, with every look-alike of a control token disguised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError

from weitune.data.control import ControlTokens, Disguise, texts_in
from weitune.data.conversation import Conversation, Turn
from weitune.data.problems import framing_error
from weitune.errors import DataError, ModelError

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For a tokenizer that has the ChatML tokens and no template."""

PLAIN = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content + '\\n\\n' }}"
    "{% elif message.role == 'assistant' %}{{ 'Assistant:\\n' + message.content + eos_token + '\\n\\n' }}"
    "{% else %}{{ message.role | capitalize + ':\\n' + message.content + '\\n\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
"""For a tokenizer without any control tokens but an end of sequence."""

_SENTINEL = "reasoning-before-the-answer"
_REFUSALS = (TemplateError, TypeError, ValueError, AttributeError, LookupError, RecursionError)


class Rendered(NamedTuple):
    """Text, and the character ranges that the template marks with ``{% generation %}``, if it marks any."""

    text: str
    generated: tuple[tuple[int, int], ...]


class ChatTemplate:
    """The Jinja source of a template, the one for conversations with tools if that differs, and its arguments."""

    def __init__(self, source: str, with_tools: str, arguments: Mapping[str, Any], specials: Mapping[str, Any]) -> None:
        """``arguments`` come from the recipe, ``specials`` (``bos_token`` and so on) from the tokenizer."""
        self.source = source
        self.with_tools = with_tools
        self.arguments = dict(arguments)
        self._variables = {**specials, **arguments}
        self.marks_generation = "endgeneration" in source + with_tools
        self.reads_date = "strftime_now" in source + with_tools

    @cached_property
    def reads_reasoning(self) -> bool:
        """Whether the template writes an assistant's reasoning, tried out on a small dialogue."""
        question = {"role": "user", "content": "?"}
        answer = {"role": "assistant", "content": "!", "reasoning_content": _SENTINEL}
        try:
            return _SENTINEL in self.render([question, answer], [], False).text
        except _REFUSALS:
            return False

    def describe(self) -> dict[str, Any]:
        """Return what decides the text: sources and arguments."""
        tools = {"template_with_tools": self.with_tools} if self.with_tools != self.source else {}
        return {"template": self.source, **tools, "template_args": self.arguments}

    def writes(self) -> str:
        """Return every text that the template may write besides a conversation's own."""
        return self.source + self.with_tools + json.dumps(self._variables, ensure_ascii=False, default=str)

    def render(self, messages: list[dict[str, Any]], tools: list[Any], add_generation_prompt: bool) -> Rendered:
        """Render plain message dicts. Raises whatever the template raises."""
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, generated = render_jinja_template(
            conversations=[messages],
            tools=tools or None,
            chat_template=self.with_tools if tools else self.source,
            return_assistant_tokens_mask=self.marks_generation,
            add_generation_prompt=add_generation_prompt,
            **self._variables,
        )
        return Rendered(texts[0], tuple(generated[0]) if generated else ())


class Script:
    """One conversation under one template. Renderings are kept, for neighbouring turns ask for the same ones."""

    def __init__(self, template: ChatTemplate, controls: ControlTokens, conversation: Conversation) -> None:
        """Turn ``conversation`` into messages, disguised where need be."""
        self.conversation = conversation
        self._template = template
        messages = _messages(conversation.turns, template.reads_reasoning)
        tools = [dict(tool) for tool in conversation.tools]
        texts = [
            *texts_in([{k: v for k, v in message.items() if k != "role"} for message in messages]),
            *texts_in(tools),
        ]
        self.disguise = controls.disguise(texts, template.writes())
        if self.disguise is not None:
            messages = [{**_hidden(message, self.disguise), "role": message["role"]} for message in messages]
            tools = _hidden(tools, self.disguise)
        self.messages: list[dict[str, Any]] = messages
        self.tools: list[Any] = tools
        self._kept: dict[tuple[int, bool], Rendered] = {}

    def render(self, turns: int, prompting: bool = False) -> Rendered:
        """Render the first ``turns`` turns; ``prompting`` asks for the assistant's next one.

        Raises DataError if the template refuses them.
        """
        key = (turns, prompting)
        if key not in self._kept:
            try:
                self._kept[key] = self._template.render(self.messages[:turns], self.tools, prompting)
            except _REFUSALS as error:
                raise self._refused(turns, error) from None
        return self._kept[key]

    def reveal(self, text: str) -> str:
        """Give rendered ``text`` its own characters back."""
        return self.disguise.reveal(text) if self.disguise is not None else text

    def _refused(self, turns: int, error: Exception) -> DataError:
        roles = ", ".join(turn.role for turn in self.conversation.turns[:turns]) or "no turns"
        return self.problem(
            "turns that the chat template accepts",
            f"{roles}: {error}",
            "Give the conversation the turns this model's template knows, or set `tokens.template_args` as it asks.",
        )

    def problem(self, expected: str, found: str, cure: str) -> DataError:
        """Return an error about this row."""
        return framing_error(self.conversation.origin, expected, found, cure)


def chat_template(tokenizer: Any, arguments: Mapping[str, Any] | None) -> tuple[ChatTemplate, str | None]:
    """Return the template of a transformers ``tokenizer``, or a stand-in and a note that says so.

    Raises ModelError if there is neither a template nor a token that could end a turn.
    """
    specials = tokenizer.special_tokens_map
    if tokenizer.chat_template:
        source = tokenizer.get_chat_template(None, None)
        return ChatTemplate(source, tokenizer.get_chat_template(None, [{}]), arguments or {}, specials), None
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if {"<|im_start|>", "<|im_end|>"} <= added:
        note = "The tokenizer has no chat template; its ChatML tokens frame the turns."
        return ChatTemplate(CHATML, CHATML, arguments or {}, specials), note
    if tokenizer.eos_token is None:
        raise ModelError(
            "the tokenizer has neither a chat template nor an end-of-sequence token",
            "Use a chat model, or add a `chat_template` to the model's tokenizer_config.json.",
        )
    note = "The tokenizer has no chat template; turns are framed as plain text (`User:`, `Assistant:`)."
    return ChatTemplate(PLAIN, PLAIN, arguments or {}, specials), note


def spoken(turn: Turn) -> str:
    """Return what a turn says as plain text, reasoning first, for framings that have no place for reasoning."""
    return turn.content if turn.reasoning is None else f"<think>\n{turn.reasoning}\n</think>\n\n{turn.content}"


def _messages(turns: tuple[Turn, ...], reads_reasoning: bool) -> list[dict[str, Any]]:
    """Return the turns as chat templates expect them; a tool's answer names the call it answers."""
    messages: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content if reads_reasoning else spoken(turn)}
        if reads_reasoning and turn.reasoning is not None:
            message["reasoning_content"] = turn.reasoning
        if turn.name is not None:
            message["name"] = turn.name
        if turn.tool_calls:
            # Mistral's templates insist on nine letters or digits.
            open_calls = [call.id or f"call{len(messages):03}{i:02}" for i, call in enumerate(turn.tool_calls)]
            message["tool_calls"] = [
                {"type": "function", "id": id_, "function": {"name": call.name, "arguments": call.arguments}}
                for id_, call in zip(open_calls, turn.tool_calls, strict=True)
            ]
        if turn.role == "tool":
            id_ = turn.tool_call_id or (open_calls[0] if open_calls else None)
            if id_ is not None:
                message["tool_call_id"] = id_
                open_calls = [other for other in open_calls if other != id_]
        messages.append(message)
    return messages


def _hidden(value: Any, disguise: Disguise) -> Any:
    if isinstance(value, str):
        return disguise.hide(value)
    if isinstance(value, Mapping):
        return {_hidden(key, disguise): _hidden(item, disguise) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item, disguise) for item in value]
    return value
