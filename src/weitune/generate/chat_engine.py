"""What a dialogue needs of whatever answers: transformers here, llama.cpp in this process, or a server elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from weitune.data.conversation import Conversation
from weitune.generate.sampling import Sampling
from weitune.generate.stream import Answer


class ChatStream(Protocol):
    """An answer on its way: iterate for its text, piece by piece."""

    def __iter__(self) -> Iterator[str]:
        """Return the stream itself."""

    def __next__(self) -> str:
        """Return the next piece of text, never an empty one."""

    def close(self) -> None:
        """End generation."""

    @property
    def answer(self) -> Answer:
        """The answer as far as it has been read; its tokens are there if they are known here."""

    @property
    def length_tokens(self) -> int | None:
        """How many tokens have been generated; None if that is not known."""


class ChatEngine(Protocol):
    """Something that answers conversations as they are given."""

    @property
    def context_tokens(self) -> int | None:
        """How many tokens can be read and written together; None if that is not known here."""

    @property
    def about(self) -> str:
        """What computes the answers, and where: ``float32 on cpu``."""

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know about how conversations are framed."""

    def prompt_tokens(self, conversation: Conversation) -> int:
        """Return the length of the prompt; asked for only where :attr:`context_tokens` is known."""

    def stream(self, conversation: Conversation, sampling: Sampling | None = None) -> ChatStream:
        """Return the answer as a stream of text. Raises InputError if it cannot be had."""
