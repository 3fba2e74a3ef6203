"""Framing: from a :class:`Conversation` to tokens, for training and for every later use of the model.

    Conversation ── draft ──▶ Draft ── encode ──▶ Example        what is trained
                 ── prompt ──────────────────────▶ tokens        what the model is asked, then and later

:mod:`.chat` frames with a tokenizer's chat template, :mod:`.tutorial` as the self-llm tutorials do; :mod:`.choose`
takes the one that a recipe asks for.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from weitune.data.conversation import Conversation, Example
from weitune.data.frame.control_tokens import ControlTokens
from weitune.data.frame.encode import Draft, EncodingBatch, PieceEncoder, Text
from weitune.errors import ModelError


class Framing(ABC):
    """Turns conversations into tokens: training, chat, evaluation, serving and export all use it.

    ``tokenizer`` is a transformers fast tokenizer; raises ModelError if it is not.
    """

    end_of_turn: int
    """Id of the token that ends an assistant's turn."""
    stop_tokens: tuple[int, ...]
    """Every id at which generation must stop; :attr:`end_of_turn` is the first."""
    notes: list[str]
    """What the user should know about this tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError("data.framing.no_fast_tokenizer", kind=type(tokenizer).__name__)
        self.notes = []
        self._backend = backend
        self._controls = ControlTokens(backend)
        self._encoder = PieceEncoder(backend, self._controls)

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of the control tokens; no text of a row becomes one."""
        return frozenset(self._controls.ids.values())

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """The ids of the control tokens by their texts."""
        return self._controls.ids

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the control tokens that the tokenizer calls special: decoded answers do not show them."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @property
    def argument_names(self) -> frozenset[str]:
        """The names of the arguments that the template reads."""
        return frozenset()

    @property
    def variables(self) -> frozenset[str]:
        """The names of all that the template reads, its arguments and what it is always given."""
        return frozenset()

    @property
    def specials(self) -> Mapping[str, str]:
        """The texts of special tokens that the template may write, by their names (``bos_token``)."""
        return {}

    def with_arguments(self, arguments: Mapping[str, Any]) -> Framing:
        """Return this framing with further arguments of its template, in place of its own of the same name."""
        raise ModelError("data.framing.no_arguments", names=", ".join(arguments))

    def text_tokens(self, text: str) -> list[int]:
        """Return the tokens of ``text`` as it is, after those that the tokenizer puts before every text (``<s>``)."""
        before: list[int] = self._backend.encode("").ids
        return [*before, *self.encode([Draft((Text(text, bare=False),))])[0].input_ids] if text else before

    @property
    def vocabulary_tokens(self) -> int:
        """How many tokens the tokenizer has."""
        count: int = self._backend.get_vocab_size()
        return count

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ``tokens``, without that of special ones."""
        text: str = self._backend.decode(list(tokens), skip_special_tokens=True)
        return text

    def lookalikes(self, text: str) -> list[tuple[int, int]]:
        """Return the character ranges (start, stop) in which ``text`` spells control tokens."""
        return self._controls.lookalikes(text)

    @abstractmethod
    def draft(self, conversation: Conversation) -> list[Draft]:
        """Return the examples of ``conversation`` before tokenization. Raises DataError that names the row."""

    def drafting(self) -> Callable[[Conversation], list[Draft]]:
        """Return what drafts many conversations as :meth:`draft` does. It may raise :class:`.FormDiffers`."""
        return self.draft

    @abstractmethod
    def prompt(self, conversation: Conversation) -> list[int]:
        """Return the tokens up to where the assistant answers the last turn."""

    def least_tokens(self, conversation: Conversation) -> int:
        """Return how many tokens :meth:`prompt` returns at least, at the cost of one rendering.

        Raises DataError as it does.
        """
        return 0

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return everything that decides the tokens, as JSON."""

    def basis(self) -> dict[str, Any]:
        """Return :meth:`describe` without the tokenizer's hash: what a run and the run that resumes it have alike."""
        return {key: value for key, value in self.describe().items() if key != "tokenizer_sha256"}

    def encode(self, drafts: Sequence[Draft]) -> list[Example]:
        """Tokenize ``drafts`` in one batch."""
        return self._encoder.encode(drafts)

    def begin(self, drafts: Sequence[Draft]) -> EncodingBatch:
        """Return the batch of ``drafts``, which may be tokenized in another thread."""
        return self._encoder.begin(drafts)

    def examples_batch(self, conversations: Iterable[Conversation]) -> list[list[Example]]:
        """Return the examples of every conversation, in order. Raises DataError at the first that cannot be framed."""
        drafts = [self.draft(conversation) for conversation in conversations]
        examples = iter(self.encode([draft for group in drafts for draft in group]))
        return [list(islice(examples, len(group))) for group in drafts]

    def examples(self, conversation: Conversation) -> list[Example]:
        """Return what ``conversation`` teaches: one example, or one for each learned turn."""
        return self.examples_batch([conversation])[0]

    @cached_property
    def tokenizer_hash(self) -> str:
        """The SHA-256 of the tokenizer's JSON: vocabulary, merges, added tokens and every step."""
        return hashlib.sha256(self._backend.to_str().encode("utf-8", "surrogatepass")).hexdigest()
