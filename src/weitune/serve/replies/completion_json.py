"""Chat answers in the form of the OpenAI protocol: one JSON object, or one for every part."""

from __future__ import annotations

import json
import secrets
import string
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from weitune.data.conversation import ToolCall
from weitune.serve.answers.part import FinishReason, Part

_ID_CHARACTERS = 9
"""Of the id of a call: as many as Mistral's templates require, all letters or digits."""


class Reply(Protocol):
    """One reply in one of the protocol's forms."""

    def whole(self, answers: Sequence[Part], usage: Mapping[str, Any]) -> dict[str, Any]:
        """Return all answers."""

    def opening(self, index: int) -> Sequence[dict[str, Any]]:
        """Return the events with which a stream begins for an answer."""

    def chunk(self, index: int, part: Part) -> Sequence[dict[str, Any]]:
        """Return the events of one part of an answer."""

    def closing(self, usage: Mapping[str, Any], wanted: bool) -> Sequence[dict[str, Any]]:
        """Return the last events of a stream; ``wanted``: the client asked for the usage."""

    @property
    def ends_with_done(self) -> bool:
        """Whether a stream ends with a line that says so."""


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A reply to ``/v1/chat/completions``: what all of its parts have in common."""

    model: str
    logprobs: int | None = None
    """How many alternatives to each token are told; None: nothing about likelihood is."""
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    ends_with_done: bool = True

    def whole(self, answers: Sequence[Part], usage: Mapping[str, Any]) -> dict[str, Any]:
        choices = [
            {
                "index": i,
                "message": self._message(part),
                "logprobs": self._logprobs(part),
                "finish_reason": part.finish or "stop",
            }
            for i, part in enumerate(answers)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [self._delta(index, {"role": "assistant", "content": ""})]

    def chunk(self, index: int, part: Part) -> list[dict[str, Any]]:
        delta: dict[str, Any] = {}
        if part.said.reasoning:
            delta["reasoning_content"] = part.said.reasoning
        if part.said.content:
            delta["content"] = part.said.content
        if part.said.calls:
            delta["tool_calls"] = [{"index": i, **call_json(call)} for i, call in enumerate(part.said.calls)]
        return [self._delta(index, delta, part.finish, self._logprobs(part))]

    def closing(self, usage: Mapping[str, Any], wanted: bool) -> list[dict[str, Any]]:
        return [{**self._head("chat.completion.chunk"), "choices": [], "usage": usage}] if wanted else []

    def _message(self, part: Part) -> dict[str, Any]:
        said = part.said
        message: dict[str, Any] = {"role": "assistant", "content": said.content or (None if said.calls else "")}
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        if said.calls:
            message["tool_calls"] = [call_json(call) for call in said.calls]
        return message

    def _delta(
        self, index: int, delta: dict[str, Any], finish: FinishReason | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _logprobs(self, part: Part) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        return {"content": [token_json(token, self.logprobs) for token in part.logprobs], "refusal": None}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def call_json(call: ToolCall) -> dict[str, Any]:
    """Return a call in the protocol's form, with the id that the model wrote or one made up."""
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": call.id or new_call_id(), "type": "function", "function": function}


def new_call_id() -> str:
    """Return an id for a call that every template takes."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_ID_CHARACTERS))


def token_json(token: Mapping[str, Any], alternatives: int) -> dict[str, Any]:
    """Return the likelihood of a token, and those of the likeliest ``alternatives``."""
    others = [_likelihood(other) for other in token["top_logprobs"][:alternatives]]
    return {**_likelihood(token), "top_logprobs": others}


def _likelihood(token: Mapping[str, Any]) -> dict[str, Any]:
    return {"token": token["token"], "logprob": token["logprob"], "bytes": token["bytes"]}


def usage_of(prompt_tokens: int, generated_tokens: int, reasoning_tokens: int = 0) -> dict[str, Any]:
    """Return the counts of tokens read and written; those of reasoning are among the written ones."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated_tokens,
        "total_tokens": prompt_tokens + generated_tokens,
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }
