"""Continued texts in the form of the OpenAI protocol (``/v1/completions``)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from weitune.serve.answers.part import Part


@dataclass(frozen=True, slots=True)
class TextReply:
    """A reply: what all of its parts have in common."""

    model: str
    before: Sequence[str]
    """What stands before each choice."""
    logprobs: int | None = None
    """How many alternatives to each token are told; None: nothing about likelihood is."""
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    ends_with_done: bool = True

    def whole(self, answers: Sequence[Part], usage: Mapping[str, Any]) -> dict[str, Any]:
        choices = [{**self._choice(i, part), "finish_reason": part.finish or "stop"} for i, part in enumerate(answers)]
        for choice, before in zip(choices, self.before, strict=True):
            choice["text"] = before + choice["text"]
        return {**self._head(), "choices": choices, "usage": usage}

    def opening(self, index: int) -> list[dict[str, Any]]:
        if not self.before[index]:
            return []
        echoed = {"index": index, "text": self.before[index], "logprobs": None, "finish_reason": None}
        return [{**self._head(), "choices": [echoed]}]

    def chunk(self, index: int, part: Part) -> list[dict[str, Any]]:
        return [{**self._head(), "choices": [{**self._choice(index, part), "finish_reason": part.finish}]}]

    def closing(self, usage: Mapping[str, Any], wanted: bool) -> list[dict[str, Any]]:
        return [{**self._head(), "choices": [], "usage": usage}] if wanted else []

    def _choice(self, index: int, part: Part) -> dict[str, Any]:
        return {"index": index, "text": part.said.content, "logprobs": self._logprobs(part)}

    def _logprobs(self, part: Part) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        tokens = [str(token["token"]) for token in part.logprobs]
        return {
            "tokens": tokens,
            "token_logprobs": [token["logprob"] for token in part.logprobs],
            "top_logprobs": [
                {other["token"]: other["logprob"] for other in token["top_logprobs"][: self.logprobs]}
                for token in part.logprobs
            ],
            "text_offset": list(accumulate(map(len, tokens), initial=0))[: len(tokens)],
        }

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
