"""A chat template: its source and arguments, and the text that it makes of messages.

Rendering is transformers' sandboxed Jinja, the very function behind ``apply_chat_template``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, NamedTuple

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.meta import find_undeclared_variables

from weitune.data.frame.control_tokens import Disguise
from weitune.data.frame.tracing import TracedTemplate, environment_of
from weitune.errors import ModelError
from weitune.messages import say

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

Messages = Sequence[Mapping[str, Any]]
REFUSALS = (TemplateError, TypeError, ValueError, AttributeError, LookupError, RecursionError)
"""What a template may raise if it does not accept its messages."""
_GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


_ONE_MARKING = threading.Lock()
"""transformers keeps one compiled template for each source, and in it the ranges that one rendering marks."""


class Rendered(NamedTuple):
    """Text, and the character ranges that the template marks with ``{% generation %}``, if it marks any."""

    text: str
    generated: tuple[tuple[int, int], ...]


class ChatTemplate:
    """The Jinja ``source`` of a template, its source ``with_tools`` (often the same), and its arguments.

    ``arguments`` come from the recipe, ``specials`` (``bos_token`` and so on) from the tokenizer.
    """

    def __init__(self, source: str, with_tools: str, arguments: Mapping[str, Any], specials: Mapping[str, Any]) -> None:
        self.source = source
        self.with_tools = with_tools
        self.arguments = dict(arguments)
        self._specials = specials
        self._variables = {**specials, **arguments}
        self.marks_generation = "endgeneration" in source + with_tools
        self.reads_date = "strftime_now" in source + with_tools

    def for_tools(self) -> ChatTemplate:
        """Return the template for conversations with tools, used for all conversations."""
        if self.with_tools == self.source:
            return self
        return ChatTemplate(self.with_tools, self.with_tools, self.arguments, self._specials)

    def describe(self) -> dict[str, Any]:
        tools = {"template_with_tools": self.with_tools} if self.with_tools != self.source else {}
        return {"template": self.source, **tools, "template_args": self.arguments}

    @property
    def specials(self) -> dict[str, str]:
        """The texts of the tokenizer's special tokens that the template may write, by their names there."""
        return {name: str(value) for name, value in self._specials.items()}

    def writes(self) -> str:
        """Return all text that the template itself may write."""
        return self.source + self.with_tools + json.dumps(self._variables, ensure_ascii=False, default=str)

    @cached_property
    def reads(self) -> frozenset[str]:
        """The names of all that the template reads without defining it, given by its user or not."""
        found = set()
        for source in (self.source, self.with_tools):
            environment = environment_of(source)
            found |= find_undeclared_variables(environment.parse(source)) - set(environment.globals)
        return frozenset(found)

    @cached_property
    def asks_for(self) -> list[tuple[str, Any]]:
        """The arguments that the template reads, given or not, each with a value to try: a boolean, or what the
        template compares it with."""
        arguments: dict[tuple[str, str], tuple[str, Any]] = {}
        for source in dict.fromkeys((self.source, self.with_tools)):
            environment = environment_of(source)
            tree = environment.parse(source)
            compared = list(_comparisons(tree))  # first, since the next line folds constants
            names = find_undeclared_variables(tree) - set(environment.globals) - _GIVEN
            switched = [(name, value) for name in sorted(names) for value in (True, False)]
            for name, value in [*switched, *compared]:
                if name in names and not name.endswith(("_token", "_tokens")):
                    arguments[name, repr(value)] = (name, value)
        return list(arguments.values())

    def render(self, messages: Messages, tools: Sequence[Any], add_generation_prompt: bool) -> Rendered:
        """Render plain message dicts. Raises whatever the template raises."""
        from transformers.utils.chat_template_utils import render_jinja_template

        with _ONE_MARKING if self.marks_generation else nullcontext():
            texts, generated = render_jinja_template(
                conversations=[list(messages)],
                tools=list(tools) or None,
                chat_template=self.with_tools if tools else self.source,
                return_assistant_tokens_mask=self.marks_generation,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        return Rendered(texts[0], tuple(generated[0]) if generated else ())

    def trace(self, messages: Messages, tools: Sequence[Any], add_generation_prompt: bool, disguise: Disguise) -> str:
        """Render disguised messages as :meth:`render` renders plain ones. Raises whatever the template raises."""
        traced = self._traced_with_tools if tools else self._traced
        variables = {
            "messages": list(messages), "tools": list(tools) or None, "documents": None,
            "add_generation_prompt": add_generation_prompt, **self._variables,
        }  # fmt: skip
        return traced.render(variables, disguise)

    @cached_property
    def _traced(self) -> TracedTemplate:
        return TracedTemplate(self.source)

    @cached_property
    def _traced_with_tools(self) -> TracedTemplate:
        return self._traced if self.with_tools == self.source else TracedTemplate(self.with_tools)


def _comparisons(tree: nodes.Template) -> Iterator[tuple[str, Any]]:
    """Yield every name that ``tree`` compares with a string or a number, and that value."""
    for comparison in tree.find_all(nodes.Compare):
        operands = [comparison.expr, *(operand.expr for operand in comparison.ops)]
        names = [operand.name for operand in operands if isinstance(operand, nodes.Name)]
        values = [const.value for operand in operands for const in (operand, *operand.find_all(nodes.Const))
                  if isinstance(const, nodes.Const) and isinstance(const.value, str | int | float)]  # fmt: skip
        yield from ((name, value) for name in names for value in values)


def chat_template(tokenizer: Any, arguments: Mapping[str, Any] | None) -> tuple[ChatTemplate, str | None]:
    """Return the template of a transformers ``tokenizer``, or a substitute and a note that says so.

    Raises ModelError if there is neither a template nor a token that can end a turn.
    """
    specials = tokenizer.special_tokens_map
    if tokenizer.chat_template:
        source = tokenizer.get_chat_template(None, None)
        return ChatTemplate(source, tokenizer.get_chat_template(None, [{}]), arguments or {}, specials), None
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if {"<|im_start|>", "<|im_end|>"} <= added:
        note = say("data.template.chatml_instead")
        return ChatTemplate(CHATML, CHATML, arguments or {}, specials), note
    if tokenizer.eos_token is None:
        raise ModelError("data.template.none")
    note = say("data.template.plain_text_instead")
    return ChatTemplate(PLAIN, PLAIN, arguments or {}, specials), note
