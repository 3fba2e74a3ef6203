"""The tools part of a Modelfile's template, read off the run's chat template as the frames of turns are.

    <|im_start|>system\\n you are…  \\n\\n# Tools…<tools>\\n  {tool}  \\n  {tool}  \\n</tools>…<|im_end|>\\n
    <|im_start|>assistant  \\n<tool_call>\\n{"name": "  NAME  ", "arguments":  {…}  }\\n</tool_call>  <|im_end|>\\n
    <|im_start|>user\\n<tool_response>\\n  RESULT  \\n</tool_response>\\n<tool_response>\\n  RESULT  …

What stands between is text that Go writes as it is; tools and arguments it writes as JSON without spaces, where Jinja
has them. Ollama reads calls out of an answer by the text with which the block of ``.ToolCalls`` begins, which must
stand in the template as text; the text before it, which differs for answers that say something first, stands outside.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError

from weitune.export.formats.modelfile import can_hold, go_action
from weitune.export.formats.ollama import TurnFrames

Message = Mapping[str, Any]
RenderWithTools = Callable[[Sequence[Message], Sequence[Any], bool], str]
"""Renders messages with tools, with or without the generation prompt."""

_CASES = ("su", "u", "suctu", "uct", "ucttau", "subtct", "subttuauct")
"""Dialogues to compare both ways: system, user, assistant, a call, a call after some words (b), and a tool's result."""


class Listing(NamedTuple):
    """The text before the first of several items, between two of them, and after the last."""

    before: str
    between: str
    after: str

    def of(self, items: Sequence[str]) -> str:
        return f"{self.before}{self.between.join(items)}{self.after}"


@dataclass(frozen=True, slots=True)
class ToolFrames:
    """The frames of turns, with those of tools, of calls and of results."""

    turns: TurnFrames
    tools: Listing
    """After a system prompt, up to the end of its turn."""
    tools_alone: Listing
    """At the beginning of a dialogue without a system message."""
    of_function: bool
    """Whether a tool is listed by its function alone, without its type."""
    around_words: tuple[str, str]
    """Around what the assistant says before it calls."""
    without_words: str
    """Before the calls of an assistant that says nothing."""
    call: str
    """Before the name of the first tool that is called, whether there are words before it or not."""
    arguments: str
    """Between a name and its arguments."""
    between_calls: str
    after_calls: str
    results: Listing

    @property
    def system(self) -> str | None:
        return self.turns.system

    def render(self, messages: Sequence[Message], tools: Sequence[Any]) -> str:
        """Frame ``messages`` and ask for an answer, as :meth:`go_template` does, but with Jinja's JSON."""
        listed = [_json(tool["function"] if self.of_function else tool) for tool in tools]
        out = self.tools_alone.of(listed) if messages[0]["role"] != "system" else ""
        last = ""
        for message in messages:
            role, content = message["role"], message["content"]
            out += self.results.after if last == "tool" and role != "tool" else ""
            if role == "tool":
                out += (self.results.between if last == "tool" else self.results.before) + content
            elif role == "system":
                out += f"{self.turns.around[role][0]}{content}{self.tools.of(listed)}"
            elif message.get("tool_calls"):
                out += self._calling(content, message["tool_calls"])
            else:
                out += content.join(self.turns.around[role])
            last = role
        return out + (self.results.after if last == "tool" else "") + self.turns.opening

    def _calling(self, content: str, calls: Sequence[Any]) -> str:
        functions = [call["function"] for call in calls]
        made = [f"{each['name']}{self.arguments}{_json(each['arguments'])}" for each in functions]
        before = content.join(self.around_words) if content else self.without_words
        return before + self.call + self.between_calls.join(made) + self.after_calls

    def go_template(self) -> str:
        (system, _), (user, after_user) = self.turns.around["system"], self.turns.around["user"]
        head = f"{_when('.Tools', self._go_tools(self.tools_alone), go_action(self.turns.head))}"
        listed = _when("$.Tools", self._go_tools(self.tools), go_action(self.turns.around["system"][1]))
        ended = go_action(self.results.after)
        result = _when('eq $last "tool"', go_action(self.results.between), go_action(self.results.before))
        return (
            '{{- $last := "" }}'
            + _when('ne (index .Messages 0).Role "system"', head)
            + "{{- range .Messages }}"
            + _when('and (eq $last "tool") (ne .Role "tool")', ended)
            + f'{{{{- if eq .Role "system" }}}}{go_action(system)}{{{{ .Content }}}}{listed}'
            + f'{{{{- else if eq .Role "user" }}}}{go_action(user)}{{{{ .Content }}}}{go_action(after_user)}'
            + f'{{{{- else if eq .Role "assistant" }}}}{self._go_assistant()}'
            + f'{{{{- else if eq .Role "tool" }}}}{result}{{{{ .Content }}}}{{{{- end }}}}'
            + "{{- $last = .Role }}{{- end }}"
            + _when('eq $last "tool"', ended)
            + go_action(self.turns.opening)
        )

    def _go_tools(self, listing: Listing) -> str:
        tool = "$tool.Function" if self.of_function else "$tool"
        between = _when("$i", go_action(listing.between))
        items = f"{{{{- range $i, $tool := $.Tools }}}}{between}{{{{ {tool} }}}}{{{{- end }}}}"
        return f"{go_action(listing.before)}{items}{go_action(listing.after)}"

    def _go_assistant(self) -> str:
        before, after = map(go_action, self.turns.around["assistant"])
        words = map(go_action, self.around_words)
        made = f"{{{{ $call.Function.Name }}}}{go_action(self.arguments)}{{{{ $call.Function.Arguments }}}}"
        between = _when("$i", go_action(self.between_calls))
        return (
            "{{- $calls := .ToolCalls }}"
            + f"{{{{- if not $calls }}}}{before}{{{{ .Content }}}}{after}"
            + f"{{{{- else if .Content }}}}{'{{ .Content }}'.join(words)}"
            + f"{{{{- else }}}}{go_action(self.without_words)}{{{{- end }}}}"
            + f"{{{{- if .ToolCalls }}}}{self.call}{{{{ range $i, $call := .ToolCalls }}}}{between}{made}"
            + f"{{{{- end }}}}{go_action(self.after_calls)}{{{{- end }}}}"
        )


def tool_frames(
    render: RenderWithTools, turns: TurnFrames, automatic: str = "", system: str | None = None
) -> ToolFrames | None:
    """Read the frames of tools off dialogues that ``render`` renders; ``turns`` are those without tools.

    ``automatic`` is what the tokenizer adds at the beginning, ``system`` the run's system prompt. Returns None if the
    chat template has no tools, or does more with them than frame them, so that a Go template cannot say it.
    """

    def shown(roles: str, ask: bool = False) -> str:
        return render(_dialogue(roles), _TOOLS, ask).removeprefix(automatic)

    try:
        frames = _read_off(shown, turns)
        same = all(frames.render(_dialogue(case), _TOOLS) == shown(case, True) for case in _CASES)
        if system is not None and turns.system is None:
            opened = [{"role": "system", "content": system}, *_dialogue("u")]
            head = _without(render(opened, _TOOLS, False).removeprefix(automatic), _user(turns, 0))
            frames = replace(frames, tools_alone=_listing(head, frames.of_function))
    except (ValueError, IndexError, TemplateError, TypeError, KeyError):
        return None
    fits = can_hold(frames.call) and "{{" not in frames.call and frames.call.strip()
    return frames if same and fits else None


def _read_off(shown: Callable[..., str], turns: TurnFrames) -> ToolFrames:
    """Take renderings apart. Raises ValueError unless every text is in them where it is expected."""
    listed = _without(shown("su"), _user(turns, 1))
    before = f"{turns.around['system'][0]}{_text(0)}"
    if not listed.startswith(before):
        raise ValueError("the tools stand before the system prompt")
    of_function = _json(_TOOLS[0]) not in listed
    spoken, words = _calls_after(shown, "subtt").split(_text(2))
    silent = _calls_after(shown, "suctt")
    names = [call["function"]["name"] for call in _CALLS]
    arguments = [_json(call["function"]["arguments"]) for call in _CALLS]
    without_words, rest = silent.split(names[0])
    to_arguments, rest = rest.split(arguments[0])
    between_calls, rest = rest.split(names[1])
    _, rest = rest.split(arguments[1])
    after_words = words.split(names[0])[0]
    call = _common_end(without_words, after_words)
    end = turns.around["assistant"][1]
    inside, found, before_result = rest.split(_text(3))[0].partition(end)
    if not found or not end:
        raise ValueError("a call does not end as an answer does")
    between_results, after_results = rest.split(_text(3))[1].split(_text(4))
    return ToolFrames(
        turns,
        _listing(listed.removeprefix(before), of_function),
        _listing(_without(shown("u"), _user(turns, 0)), of_function),
        of_function,
        (spoken, after_words.removesuffix(call)),
        without_words.removesuffix(call),
        call,
        to_arguments,
        between_calls,
        inside + end,
        Listing(before_result, between_results, _without(after_results, turns.opening)),
    )


def _calls_after(shown: Callable[..., str], roles: str) -> str:
    """Return what follows the question in a dialogue that begins with a system prompt and a question."""
    rendered, asked = shown(roles, True), shown("su")
    if not rendered.startswith(asked):
        raise ValueError("an answer changes what stands before it")
    return rendered.removeprefix(asked)


def _listing(text: str, of_function: bool) -> Listing:
    """Return the text around both tools. Raises ValueError unless each is in it once."""
    first, second = (_json(tool["function"] if of_function else tool) for tool in _TOOLS)
    before, rest = text.split(first)
    between, after = rest.split(second)
    return Listing(before, between, after)


def _without(text: str, end: str) -> str:
    """Return ``text`` without its ``end``. Raises ValueError if it does not end so."""
    if not text.endswith(end):
        raise ValueError("a turn is framed in another way beside tools")
    return text.removesuffix(end)


def _common_end(one: str, other: str) -> str:
    pairs = zip(reversed(one), reversed(other), strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return one[len(one) - same :]


def _user(turns: TurnFrames, number: int) -> str:
    return _text(number).join(turns.around["user"])


def _when(condition: str, then: str, otherwise: str = "") -> str:
    other = f"{{{{- else }}}}{otherwise}" if otherwise else ""
    return f"{{{{- if {condition} }}}}{then}{other}{{{{- end }}}}" if then or otherwise else ""


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text(number: int) -> str:
    return f"⟦text {number}⟧"


def _tool(number: int) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {f"⟦key {number}⟧": {"type": "string"}}}
    function = {"name": f"⟦tool {number}⟧", "description": f"⟦about {number}⟧", "parameters": parameters}
    return {"type": "function", "function": function}


def _call(number: int) -> dict[str, Any]:
    function = {"name": f"⟦name {number}⟧", "arguments": {f"⟦argument {number}⟧": f"⟦value {number}⟧"}}
    return {"type": "function", "function": function}


_TOOLS = [_tool(0), _tool(1)]
_CALLS = [_call(0), _call(1)]
_ROLES = {"s": "system", "u": "user", "a": "assistant", "b": "assistant", "c": "assistant", "t": "tool"}


def _dialogue(roles: str) -> list[dict[str, Any]]:
    """Return a dialogue; a call says nothing (c) or something (b) before it."""
    return [
        {
            "role": _ROLES[letter],
            "content": "" if letter == "c" else _text(number),
            **({"tool_calls": _CALLS} if letter in "bc" else {}),
        }
        for number, letter in enumerate(roles)
    ]
