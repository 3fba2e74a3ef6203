"""Read an answer while it is being written: reasoning, then content, then calls.

    ⓐthe moon…ⓑ\\n\\nLet me look.\\nⓒ\\n{"name": …}\\nⓓ
     reasoning      content      └ held back until the answer ends

Content is passed on as it comes, but for an end that may be the beginning of a call. From there on the text is held
back: at the end it is either nothing but calls, or all of it is content.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from weitune.data.calls.form import AnswerForm, Tools
from weitune.data.calls.marks import Marks
from weitune.data.conversation import ToolCall
from weitune.data.frame.conventions import hidden

_State = Literal["start", "reasoning", "opening", "content", "calls"]


class Said(NamedTuple):
    """New text of an answer."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()

    def __add__(self, other: object) -> Said:
        if not isinstance(other, Said):
            return NotImplemented
        return Said(self.content + other.content, self.reasoning + other.reasoning, self.calls + other.calls)


@dataclass(frozen=True, slots=True)
class ReadAs:
    """What to read an answer as: its form, and the tools it may call (None: it may call none)."""

    form: AnswerForm
    marks: Marks
    tools: Tools | None = None
    names: re.Pattern[str] | None = None
    """What the name of a call must be; text with any other is content."""


class AnswerReader:
    """Reads one answer."""

    def __init__(self, read_as: ReadAs) -> None:
        self._form, self._marks, self._tools = read_as.form, read_as.marks, read_as.tools
        self._names = read_as.names
        self._state: _State = "start"
        self._buffer = ""
        self._thought = False
        self._read = 0
        self._content_at: int | None = None
        self._calls_at: int | None = None

    def add(self, text: str) -> Said:
        """Return what is certain with the marked ``text`` that comes next."""
        self._buffer += text
        self._read += len(text)
        said = Said()
        before = None
        while before != (self._state, self._buffer):
            before = (self._state, self._buffer)
            said += self._step()
        return said

    def end(self) -> Said:
        """Return what was held back, now that nothing follows."""
        text, state = self._buffer, self._state
        self._buffer = ""
        if state == "reasoning":
            return Said(reasoning=self._marks.shown(text.rstrip("\n")))
        if state == "calls" and self._form.calls is not None:
            calls = self._form.calls.read(text.lstrip().removeprefix(self._form.gap).lstrip(), self._tools or ())
            if calls and all(self._names is None or self._names.fullmatch(call.name) for call in calls):
                return Said(calls=tuple(map(self._spelled_out, calls)))
            self._calls_at = None
            return Said(self._marks.written(text))
        if self._content_at is None:
            self._content_at = self._read - len(text)
        return Said(self._marks.shown(text))

    def _spelled_out(self, call: ToolCall) -> ToolCall:
        """Return ``call`` without marks: a control token within a value is text there."""
        arguments = hidden(call.arguments, self._marks.written)
        return call._replace(arguments=arguments, id=None if call.id is None else self._marks.written(call.id))

    @property
    def thinks(self) -> bool:
        """Whether the text ends within the reasoning."""
        return self._state == "reasoning"

    @property
    def content_range(self) -> tuple[int, int]:
        """Where in the text the content is, as far as it has been read."""
        begin = self._read if self._content_at is None else self._content_at
        return begin, self._read if self._calls_at is None else self._calls_at

    def _step(self) -> Said:
        if self._state == "start":
            return self._start()
        if self._state == "reasoning":
            return self._reasoning()
        if self._state == "opening":
            return self._opening()
        return self._content() if self._state == "content" else Said()

    def _start(self) -> Said:
        think, thought = self._form.think, self._form.thought
        text = self._buffer.lstrip()
        if not thought:
            self._state = "opening"
        elif not think or (text and text.startswith(think)):
            self._buffer, self._state = text[len(think) :], "reasoning"
        elif text and not think.startswith(text):
            self._state = "opening"
        return Said()

    def _reasoning(self) -> Said:
        if not self._thought:
            self._buffer = self._buffer.lstrip("\n")
        reasoning, closed, rest = self._buffer.partition(self._form.thought)
        if closed:
            self._buffer, self._state = rest, "opening"
            self._thought = True
            return Said(reasoning=self._marks.shown(reasoning.rstrip("\n")))
        sure = len(reasoning.rstrip("\n")) if reasoning.endswith("\n") else _unfinished(reasoning, self._form.thought)
        sure = len(reasoning[:sure].rstrip("\n"))
        self._buffer = reasoning[sure:]
        self._thought = self._thought or sure > 0
        return Said(reasoning=self._marks.shown(reasoning[:sure]))

    def _opening(self) -> Said:
        text = self._buffer.lstrip("\n") if self._thought else self._buffer
        openings = [opening for opening in self._form.contents if opening]
        opened = next((opening for opening in openings if text.lstrip().startswith(opening)), None)
        if opened is not None:
            self._begin_content(text.lstrip().removeprefix(opened))
        elif text and not any(opening.startswith(text.lstrip()) for opening in openings):
            self._begin_content(text)
        return Said()

    def _begin_content(self, text: str) -> None:
        self._buffer, self._state = text, "content"
        self._content_at = self._read - len(text)

    def _content(self) -> Said:
        text, calls = self._buffer, self._form.calls
        if self._tools is None or calls is None:
            self._buffer = ""
            return Said(self._marks.shown(text))
        if not calls.opening:  # a call is the whole answer, or there is none
            if not text.strip() or text.lstrip()[0] in "{[":
                if text.strip():
                    self._begin_calls(text)
                return Said()
            self._buffer, self._tools = "", None
            return Said(self._marks.shown(text))
        markers = [marker for marker in (self._form.gap, calls.opening) if marker]
        found = [at for marker in markers if (at := text.find(marker)) >= 0]
        if found:
            content = text[: min(found)].rstrip()
            self._begin_calls(text[len(content) :])
            return Said(self._marks.shown(content))
        sure = min(_unfinished(text, marker) for marker in markers)
        sure = len(text[:sure].rstrip())
        self._buffer = text[sure:]
        return Said(self._marks.shown(text[:sure]))

    def _begin_calls(self, text: str) -> None:
        self._buffer, self._state = text, "calls"
        self._calls_at = self._read - len(text)


def read_answer(text: str, form: AnswerForm, marks: Marks, tools: Tools | None) -> Said:
    """Return what the whole answer ``text``, marked, says."""
    reader = AnswerReader(ReadAs(form, marks, tools))
    return reader.add(text) + reader.end()


def _unfinished(text: str, marker: str) -> int:
    """Return where in ``text`` an end begins that may be the beginning of ``marker``; its length if there is none."""
    longest = min(len(text), len(marker) - 1)
    return next((len(text) - size for size in range(longest, 0, -1) if text.endswith(marker[:size])), len(text))
