"""Which tokens an answer may go on with, so that it can still fit its JSON schema.

    written          {"port": "Br                 the matcher of a row reads every token of it
    may follow       est   est"}   e   "   …      one bit for every token of the vocabulary
    logits           all others minus infinity    what is chosen from the rest is for the sampling to say

A stop token may follow only where the answer is whole. Every row has a matcher of its own, so the rows of a batch may
be at different places. A mask costs one walk over the tree of all tokens, in llguidance, and a pass over the logits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from weitune.errors import InputError
from weitune.generate.constrain.opening import content_opening
from weitune.generate.constrain.schema import JsonRule

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from transformers import PreTrainedTokenizerFast

    from weitune.data.frame.framing import Framing


class GrammarMask(LogitsProcessor):  # type: ignore[misc]
    """Give minus infinity to the logits of the tokens with which a row could not fit its grammar any more.

    It must come first, so that sampling chooses among the others.
    """

    def __init__(self, matchers: Sequence[LLMatcher], stop_tokens: frozenset[int]) -> None:
        """``matchers`` has one for every row, at the beginning of its answer; they are this mask's own."""
        self._matchers: list[LLMatcher | None] = list(matchers)
        self._stops = stop_tokens
        self._read: int | None = None
        """Tokens that the rows had, prompts included, when this was called last"""

    def copy(self) -> GrammarMask:
        """Return a mask that will do what this one would."""
        other = copy.copy(self)
        other._matchers = [matcher and matcher.deep_copy() for matcher in self._matchers]
        return other

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return ``scores`` (B, V) after ``input_ids`` (B, T and the tokens generated since the first call).

        Raises InputError if the grammar becomes too complex.
        """
        for row, tokens in enumerate(input_ids[:, self._read or input_ids.shape[1] :].tolist()):
            for token in tokens:
                self._take(row, token)
        self._read = input_ids.shape[1]
        allowed = np.stack([self._allowed(matcher, scores.shape[1]) for matcher in self._matchers])
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), -torch.inf)

    def _take(self, row: int, token: int) -> None:
        """Take in what a row says next; a stop token ends it, whatever follows in a batch."""
        matcher = self._matchers[row]
        if matcher is None:
            return
        if token in self._stops:
            self._matchers[row] = None
        elif not matcher.consume_token(token):
            raise _failed(matcher)

    def _allowed(self, matcher: LLMatcher | None, width: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return which of ``width`` tokens may follow."""
        if matcher is None:
            return np.ones(width, dtype=np.bool_)
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), count=width, bitorder="little")
        allowed = bits.astype(np.bool_)
        whole = matcher.is_accepting()
        for token in self._stops:
            if token < width:
                allowed[token] = whole
        if matcher.is_error() or not allowed.any():
            raise _failed(matcher)
        return allowed


class AnswerGrammar:
    """What an answer must be, for one model."""

    def __init__(self, matcher: LLMatcher, opening: tuple[int, ...], stop_tokens: frozenset[int]) -> None:
        self._matcher, self._stops = matcher, stop_tokens
        self.opening = opening
        """Tokens that stand between a prompt and the answer."""

    def mask(self, rows: int = 1) -> GrammarMask:
        """Return a mask for so many answers."""
        return GrammarMask([self._matcher.deep_copy() for _ in range(rows)], self._stops)


class Grammars:
    """Makes the grammars of one model's answers."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, framing: Framing, stop_tokens: frozenset[int]) -> None:
        self._tokenizer, self._framing, self._stops = tokenizer, framing, stop_tokens

    def of(self, schema: Mapping[str, Any]) -> AnswerGrammar:
        """Return the grammar of answers that fit ``schema``.

        Raises MissingExtraError without ``llguidance``, InputError with the reason if answers cannot be kept to it.
        """
        rule = JsonRule(schema)
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokens, rule.lark, log_level=0)
        if matcher.is_error():
            raise _failed(matcher)
        return AnswerGrammar(matcher, self.opening, self._stops)

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """Tokens that stand between a prompt and an answer, whatever its schema."""
        return content_opening(self._framing)

    @cached_property
    def _tokens(self) -> LLTokenizer:
        """The tokens as bytes, which takes up to a second for a large vocabulary."""
        from llguidance.hf import from_tokenizer

        known = [token for token in sorted(self._stops) if token < len(self._tokenizer)]
        try:
            return from_tokenizer(self._tokenizer, eos_token=known or None)
        except ValueError as error:
            raise InputError("generate.mask.tokenizer", reason=str(error)[:300]) from None


def _failed(matcher: LLMatcher) -> InputError:
    reason = matcher.get_error().strip().splitlines() or ["-"]
    return InputError("generate.schema.refused", reason=reason[0][:300])
