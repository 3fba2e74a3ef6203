"""Text in which every control token is a mark, so that no other text can be taken for one.

    tokens    [<tool_call>] "\\n{"name": "say", "arguments": {"text": "<tool_call>"}}\\n" [</tool_call>]
    marked    ⓐ\\n{"name": "say", "arguments": {"text": "<tool_call>"}}\\nⓑ

Marks are made of surrogates, which no decoded text has: one each, or a pair where there are too many control tokens for
that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from weitune.data.frame.encode import Piece, Text

_FIRST, _FIRST_LOW, _LAST = 0xD800, 0xDC00, 0xDFFF
_SINGLE, _LOW = 2048, 1024
"""How many surrogates there are, and how many of them are low ones, the second halves of pairs."""
_PAIR, _ONE = re.compile("[\\ud800-\\udbff][\\udc00-\\udfff]"), re.compile("[\\ud800-\\udfff]")


class Marks:
    """The marks of ``control_tokens`` (ids by text); ``special`` are the ids of those that answers do not show."""

    def __init__(self, control_tokens: Mapping[str, int], special: frozenset[int] = frozenset()) -> None:
        self.texts = {token: text for text, token in control_tokens.items()}
        self._marks = {token: _mark(at, len(self.texts)) for at, token in enumerate(sorted(self.texts))}
        self._tokens = {mark: token for token, mark in self._marks.items()}
        self._written = {mark: self.texts[token] for token, mark in self._marks.items()}
        self._shown = {mark: "" if token in special else self.texts[token] for token, mark in self._marks.items()}
        self._any = _ONE if len(self.texts) <= _SINGLE else _PAIR

    def of_pieces(self, pieces: Iterable[Piece]) -> str:
        """Return the pieces of a draft as marked text, without known tokens that are no control tokens."""
        return "".join(
            piece.text if isinstance(piece, Text) else "".join(self._marks.get(token, "") for token in piece)
            for piece in pieces
        )

    def of_tokens(self, tokens: Iterable[int], decode: Callable[[Sequence[int]], str]) -> str:
        """Return ``tokens`` as marked text; ``decode`` gives the text of tokens that are not control tokens."""
        texts: list[str] = []
        run: list[int] = []
        for token in tokens:
            if token in self._marks:
                texts += [decode(run) if run else "", self._marks[token]]
                run = []
            else:
                run.append(token)
        return "".join(texts) + (decode(run) if run else "")

    def ending(self, text: str, tokens: Sequence[int]) -> str:
        """Return ``text``, which ends with the last of ``tokens``, with that marked if it is a control token."""
        last = tokens[-1] if tokens else None
        if last is None or last not in self._marks or not text.endswith(self.texts[last]):
            return text
        return text.removesuffix(self.texts[last]) + self._marks[last]

    def in_order(self, text: str, tokens: Iterable[int]) -> str:
        """Return ``text``, in which ``tokens`` were written in this order, with those marked that are control tokens
        and spelled out."""
        at = 0
        for token in tokens:
            spelled = self.texts.get(token)
            found = text.find(spelled, at) if spelled else -1
            if spelled and found >= 0:
                text = text[:found] + self._marks[token] + text[found + len(spelled) :]
                at = found + 1
        return text

    def pieces(self, text: str) -> Iterator[int | str]:
        """Yield the control tokens marked in ``text``, and the texts between them."""
        at = 0
        for match in self._any.finditer(text):
            if at < match.start():
                yield text[at : match.start()]
            yield self._tokens[match[0]]
            at = match.end()
        if at < len(text):
            yield text[at:]

    def tokens_in(self, text: str) -> frozenset[int]:
        """Return the control tokens marked in ``text``."""
        return frozenset(token for token, mark in self._marks.items() if mark in text)

    def written(self, text: str) -> str:
        """Return marked ``text`` with every control token spelled out; "?" is for half a character, from an escape in
        JSON."""
        return self._any.sub(lambda match: self._written.get(match[0], "?"), text)

    def shown(self, text: str) -> str:
        """Return marked ``text`` as answers show it: without special tokens."""
        return self._any.sub(lambda match: self._shown.get(match[0], "?"), text)


def _mark(number: int, of: int) -> str:
    if of <= _SINGLE:
        return chr(_LAST - number)  # the last first: what an escape in JSON cuts an emoji to is farther up
    return chr(_FIRST + number // _LOW) + chr(_FIRST_LOW + number % _LOW)
