"""Answers in the form of the OpenAI protocol: one JSON object, or one for every piece."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from weitune.generate.llama_engine import Finish


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply: what all of its parts have in common."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: list[tuple[str, Finish]], usage: dict[str, int]) -> dict[str, Any]:
        choices = [
            {"index": i, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": finish}
            for i, (text, finish) in enumerate(answers)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    def chunk(self, index: int, delta: dict[str, str], finish: Finish | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def last_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """Return the last piece of a stream: the usage, if the client asked for it."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage_of(prompt_tokens: int, generated_tokens: int) -> dict[str, int]:
    """Return the counts of tokens read and written."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated_tokens,
        "total_tokens": prompt_tokens + generated_tokens,
    }
