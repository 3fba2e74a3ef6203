"""Answers in the form of ``/v1/responses``: items, and events that build them.

created, in_progress
output_item.added ── content_part.added ── output_text.delta … ── content_part.done ── output_item.done
completed, or incomplete for an answer that is cut
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from weitune.data.conversation import ToolCall
from weitune.serve.answers.part import Part
from weitune.serve.replies.completion_json import call_json, token_json

_Text = Literal["reasoning", "message"]
_TEXTS: Mapping[_Text, tuple[str, str]] = {
    "reasoning": ("reasoning_text", "response.reasoning_text"),
    "message": ("output_text", "response.output_text"),
}
"""The type of the text of an item, and the beginning of the names of its events."""


@dataclass(slots=True)
class ResponsesReply:
    """One reply: what it has in common with the request, and what of it has been told."""

    model: str
    asked: Mapping[str, Any]
    """The body of the request."""
    logprobs: int | None = None
    """How many alternatives to each token of a message are told; None: nothing about likelihood is."""
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))
    ends_with_done: bool = False
    _items: list[dict[str, Any]] = field(default_factory=list)
    _open: tuple[_Text, str] | None = None
    """The kind of the item whose text is coming, and that text."""
    _events: int = 0
    _likelihoods: list[dict[str, Any]] = field(default_factory=list)
    """Those of the open message."""
    _cut: bool = False

    def whole(self, answers: Sequence[Part], usage: Mapping[str, Any]) -> dict[str, Any]:
        [part] = answers
        for _ in self._said(part):
            pass
        self._cut = part.finish == "length"
        return self._response(usage)

    def opening(self, index: int) -> list[dict[str, Any]]:
        started = self._response(None)
        return [
            self._event("response.created", response=started),
            self._event("response.in_progress", response=started),
        ]

    def chunk(self, index: int, part: Part) -> list[dict[str, Any]]:
        self._cut = part.finish == "length"
        return list(self._said(part, last=part.finish is not None))

    def closing(self, usage: Mapping[str, Any], wanted: bool) -> list[dict[str, Any]]:
        kind = "response.incomplete" if self._cut else "response.completed"
        return [self._event(kind, response=self._response(usage))]

    def _said(self, part: Part, *, last: bool = True) -> Iterator[dict[str, Any]]:
        """Yield the events of what is said, and add it to the items."""
        said = part.said
        told = [] if self.logprobs is None else [token_json(token, self.logprobs) for token in part.logprobs]
        yield from self._text("reasoning", said.reasoning)
        yield from self._text("message", said.content, told)
        if last or said.calls:
            nothing = not self._items and not said.calls
            if nothing:
                yield from self._begun("message")
            yield from self._ended()
        for call in said.calls:
            yield from self._call(call)

    def _text(self, kind: _Text, text: str, told: Sequence[dict[str, Any]] = ()) -> Iterator[dict[str, Any]]:
        if not text:
            return
        if self._open is None or self._open[0] != kind:
            yield from self._ended()
            yield from self._begun(kind)
        _, before = self._open or (kind, "")
        self._open = (kind, before + text)
        yield self._event(f"{_TEXTS[kind][1]}.delta", **self._place(), delta=text, **_logprobs(kind, told))
        self._likelihoods += told

    def _begun(self, kind: _Text) -> Iterator[dict[str, Any]]:
        prefix = "rs" if kind == "reasoning" else "msg"
        item: dict[str, Any] = {"type": kind, "id": f"{prefix}_{secrets.token_hex(12)}", "status": "in_progress"}
        if kind == "reasoning":
            item["summary"] = []
        else:
            item["role"] = "assistant"
        self._items.append({**item, "content": []})
        self._open = (kind, "")
        yield self._event("response.output_item.added", output_index=len(self._items) - 1, item=self._items[-1])
        yield self._event("response.content_part.added", **self._place(), part=_part(kind, ""))
        self._likelihoods = []

    def _ended(self) -> Iterator[dict[str, Any]]:
        """Yield the events of the end of the open item, if there is one."""
        if self._open is None:
            return
        kind, text = self._open
        self._open = None
        yield self._event(f"{_TEXTS[kind][1]}.done", **self._place(), text=text, **_logprobs(kind, self._likelihoods))
        part = _part(kind, text, self._likelihoods)
        yield self._event("response.content_part.done", **self._place(), part=part)
        self._items[-1] = {**self._items[-1], "content": [part], "status": "completed"}
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=self._items[-1])

    def _call(self, call: ToolCall) -> Iterator[dict[str, Any]]:
        written = call_json(call)
        arguments = written["function"]["arguments"]
        item = {"type": "function_call", "id": f"fc_{secrets.token_hex(12)}", "call_id": written["id"],
                "name": call.name, "arguments": "", "status": "in_progress"}  # fmt: skip
        self._items.append({**item, "arguments": arguments, "status": "completed"})
        place = {"output_index": len(self._items) - 1, "item_id": item["id"]}
        yield self._event("response.output_item.added", output_index=place["output_index"], item=item)
        yield self._event("response.function_call_arguments.delta", **place, delta=arguments)
        yield self._event("response.function_call_arguments.done", **place, name=call.name, arguments=arguments)
        yield self._event("response.output_item.done", output_index=place["output_index"], item=self._items[-1])

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, "content_index": 0}

    def _event(self, kind: str, **values: Any) -> dict[str, Any]:
        self._events += 1
        return {"type": kind, "sequence_number": self._events - 1, **values}

    def _response(self, usage: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the whole response; without ``usage`` as one that has just begun."""
        status = "in_progress" if usage is None else "incomplete" if self._cut else "completed"
        asked = self.asked
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.get("instructions"), "metadata": asked.get("metadata") or {}, "model": self.model,
            "output": [] if usage is None else list(self._items), "previous_response_id": None, "store": False,
            "parallel_tool_calls": asked.get("parallel_tool_calls", True),
            "max_output_tokens": asked.get("max_output_tokens"), "temperature": asked.get("temperature"),
            "top_p": asked.get("top_p"), "tools": asked.get("tools") or [],
            "tool_choice": asked.get("tool_choice") or "auto",
            "text": asked.get("text") or {"format": {"type": "text"}},
            "truncation": "disabled", "usage": None if usage is None else _usage(usage),
        }  # fmt: skip


def _part(kind: _Text, text: str, told: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    more: dict[str, Any] = {"annotations": []} if kind == "message" else {}
    return {"type": _TEXTS[kind][0], "text": text, **more, **_logprobs(kind, told)}


def _logprobs(kind: _Text, told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"logprobs": list(told)} if kind == "message" else {}


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"], "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage["completion_tokens"], "output_tokens_details": usage["completion_tokens_details"],
        "total_tokens": usage["total_tokens"],
    }  # fmt: skip
