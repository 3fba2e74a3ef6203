"""Which tokens of an answer its content consists of, and how many its reasoning has.

tokens    ⓐ The moon… ⓑ \\n\\n At noon . ST OP
          reasoning        content   stop string
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from weitune.data.calls.marks import Marks


class TokensOfText:
    """Finds the tokens of ranges of an answer's marked text; ``decode`` gives the text of tokens."""

    def __init__(self, tokens: Sequence[int], marks: Marks, decode: Callable[[Sequence[int]], str]) -> None:
        self._tokens, self._marks, self._decode = tokens, marks, decode
        self._whole = self._text(len(tokens))

    def before(self, at: int) -> int:
        """Return how many tokens lie before the character number ``at``, whole."""
        count = self.until(at) if at else 0
        return count - 1 if count and len(self._text(count)) > at else count

    def until(self, at: int) -> int:
        """Return how many tokens it takes to write the characters before number ``at``."""
        if at >= len(self._whole):
            return len(self._tokens)
        text = self._whole[:at]  # half a character counts as none of it
        return bisect_left(range(len(self._tokens)), True, key=lambda count: self._text(count).startswith(text))

    def before_text(self, text: str) -> int:
        """Return how many tokens it takes to write what precedes ``text``; all if that does not occur."""
        at = self._whole.find(text)
        return len(self._tokens) if at < 0 else self.until(at)

    def _text(self, count: int) -> str:
        return self._marks.of_tokens(self._tokens[:count], self._decode)
