"""Control tokens: the added tokens that frame a conversation, and text that only looks like them.

A row may hold the text ``<|im_end|>``. Rendered by a chat template and tokenized, it would end the turn. So before a
template writes a row's text, the first character of every look-alike is replaced by a stand-in, a character that occurs
nowhere else; what still matches afterwards was written by the template; then the text gets its characters back
(:mod:`.tracing` sees to it that the template still decides by the text's own characters):

    row        stop <|im_end|>                            look-alike
    hidden     stop ⟂|im_end|>                            same length, no match
    rendered   <|im_start|>user\\nstop ⟂|im_end|><|im_end|>\\n
    pieces     [<|im_start|>] "user\\nstop <|im_end|>" [<|im_end|>] "\\n"

Every added token counts, special or not, except those of white space only (runs of spaces or newlines in GPT-NeoX,
Phi and Gemma), with which these tokenizers spell ordinary text. Cost: two regular-expression scans a string.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer

# Noncharacters first: Unicode reserves them for use inside a program. Then the private use area.
_STAND_INS = tuple(map(chr, chain(range(0xFDD0, 0xFDF0), range(0xE000, 0xF900), range(0xF0000, 0xF1000))))


class Control(NamedTuple):
    """One control token that a template wrote: characters ``start`` to ``stop`` of the rendered text."""

    start: int
    stop: int
    id: int


class ControlTokens:
    """The control tokens of one tokenizer: finds them in rendered text, and their look-alikes in other text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = {t.content: (i, t) for i, t in tokenizer.get_added_tokens_decoder().items() if not t.content.isspace()}
        self.ids: dict[str, int] = {content: token_id for content, (token_id, _) in added.items()}
        # Longest first, so that the alternation matches as the tokenizer does: leftmost, then longest.
        longest_first = sorted(added, key=len, reverse=True)
        never = r"(?!)"
        self._written = re.compile("|".join(_as_matched(added[text][1]) for text in longest_first) or never)
        literals = "|".join(map(re.escape, longest_first)) or never
        self._literal = re.compile(literals)
        self._lookalike = re.compile(f"(?=(?:{literals}))(.)", re.DOTALL)
        self._reach = max(map(len, added), default=1) - 1
        self._heads = frozenset(text[:k] for text in added for k in range(1, len(text)))
        self._tails = frozenset(text[-k:] for text in added for k in range(1, len(text)))
        self._first = frozenset(text[0] for text in added)
        self._last = frozenset(text[-1] for text in added)

    def find(self, text: str, start: int = 0, stop: int | None = None) -> Iterator[Control]:
        """Yield the control tokens in characters ``start`` to ``stop`` of rendered ``text``, in order.

        White space that a token absorbs (``lstrip``, ``rstrip``) belongs to its characters.
        """
        for match in self._written.finditer(text, start, len(text) if stop is None else stop):
            content = match[0] if match[0] in self.ids else match[0].strip()
            yield Control(match.start(), match.end(), self.ids[content])

    def lookalikes(self, text: str) -> list[tuple[int, int]]:
        """Return the character ranges (start, stop) in which ``text`` spells control tokens."""
        return [match.span() for match in self._literal.finditer(text)]

    def dangerous(self, text: str) -> bool:
        """Return whether ``text`` spells a control token, or a part of one at an edge that a neighbour may complete."""
        return self._lookalike.search(text) is not None or any(True for _ in self._edges(text))

    def _edges(self, text: str) -> Iterator[int]:
        """Yield the places at the edges of ``text`` where a control token may end or begin that spans a neighbour."""
        if not text:
            return
        head, tail = text[: self._reach], text[-self._reach :]
        if not self._last.isdisjoint(head):
            yield from (k - 1 for k in range(1, len(head) + 1) if head[:k] in self._tails)
        if not self._first.isdisjoint(tail):
            yield from (len(text) - len(tail) + k for k in range(len(tail)) if tail[k:] in self._heads)

    def disguise(self, texts: Iterable[str], template: str) -> Disguise | None:
        """Return a disguise for ``texts``, or None if none of them needs one (nearly always).

        Stand-ins occur neither in them nor in ``template``, the text that the template itself may write.
        """
        texts = list(texts)
        if not any(map(self.dangerous, texts)):
            return None
        return Disguise(self, _free_characters([template, *texts]))

    def _hide(self, text: str, stand_in: dict[str, str]) -> str:
        hidden = self._lookalike.sub(lambda match: stand_in[match[1]], text)
        for at in self._edges(text):
            hidden = hidden[:at] + stand_in[text[at]] + hidden[at + 1 :]
        return hidden


class Disguise:
    """Stand-ins for one conversation: :meth:`hide` before rendering, :meth:`reveal` after.

    ``hide`` raises NoStandInError if the conversation itself has all the characters that could stand in.
    """

    def __init__(self, controls: ControlTokens, free: Iterator[str]) -> None:
        self._controls = controls
        self._stand_in: dict[str, str] = _StandIns(free)

    def hide(self, text: str) -> str:
        """Return ``text`` of the same length, with no control token in it or at its edges."""
        return self._controls._hide(text, self._stand_in)

    def plain(self, text: str) -> str:
        """Return ``text`` with its own characters, of the same length."""
        for char, stand_in in self._stand_in.items():
            text = text.replace(stand_in, char)
        return text

    def unescape(self, text: str) -> str:
        """Return rendered ``text`` with each stand-in as one character: ``tojson`` may have escaped it to ASCII."""
        for stand_in in self._stand_in.values():
            text = text.replace(_json_escape(stand_in), stand_in)
        return text

    def reveal(self, text: str) -> str:
        """Return rendered ``text`` with its own characters."""
        return self.plain(self.unescape(text))


class NoStandInError(Exception):
    """All characters that could stand in occur in the text."""


class _StandIns(dict[str, str]):
    """Maps a character to its stand-in, which is taken from the ``free`` characters when it is first needed."""

    def __init__(self, free: Iterator[str]) -> None:
        super().__init__()
        self._free = free

    def __missing__(self, char: str) -> str:
        free = next(self._free, None)
        if free is None:
            raise NoStandInError
        self[char] = free
        return free


def _free_characters(texts: Sequence[str]) -> Iterator[str]:
    """Yield the characters that occur in none of ``texts``, not even as the escape that JSON in ASCII would write."""
    used = set().union(*texts)
    escaped = {unit for text in texts if "\\u" in text for unit in _ESCAPE.findall(text)}
    return (char for char in _STAND_INS if char not in used and _json_escape(char)[:6] not in escaped)


_ESCAPE = re.compile(r"\\u[0-9a-f]{4}")


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def _as_matched(token: AddedToken) -> str:
    """Return the pattern with which a tokenizer finds an added token."""
    pattern = re.escape(token.content)
    if token.single_word:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return (r"\s*" if token.lstrip else "") + pattern + (r"\s*" if token.rstrip else "")


def texts_in(value: object) -> Iterator[str]:
    """Yield every string in a JSON-like ``value``, also the keys of objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from texts_in(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from texts_in(item)
