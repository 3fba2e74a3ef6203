"""The interface of everything that answers a dialogue: transformers, llama.cpp in this process, or a remote server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from weitune.data.conversation import Conversation
from weitune.generate.sampling import Sampling
from weitune.generate.stream import Answer


class ChatStream(Protocol):
    """An answer being generated: iterate for its text, piece by piece."""

    def __iter__(self) -> Iterator[str]: ...

    def __next__(self) -> str:
        """Return the next piece of text, never an empty one."""

    def close(self) -> None:
        """Stop generating."""

    @property
    def answer(self) -> Answer:
        """The answer as far as it has been read, with its tokens if they are known."""

    @property
    def length_tokens(self) -> int | None:
        """How many tokens have been generated; None if unknown."""


class ChatEngine(Protocol):
    """Something that answers conversations as they are given."""

    @property
    def context_tokens(self) -> int | None:
        """How many tokens fit the context, prompt and answer together; None if unknown."""

    @property
    def about(self) -> str:
        """What computes the answers, and where: ``float32 on cpu``."""

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know about how conversations are framed."""

    def prompt_tokens(self, conversation: Conversation) -> int:
        """Return the length of the prompt; asked for only where :attr:`context_tokens` is known."""

    def stream(
        self, conversation: Conversation, sampling: Sampling | None = None, schema: Mapping[str, Any] | None = None
    ) -> ChatStream:
        """Return the answer as a stream of text; with ``schema`` it is JSON that fits it, unless it is cut.

        Raises InputError if there can be none.
        """
