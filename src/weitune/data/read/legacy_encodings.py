"""The encoding of text that is not UTF-8 and has no byte order mark: GB18030 if that is certain, otherwise a fault.

    bytes ─▶ every encoding still in use ─▶ share of frequent characters ─▶ the likely ones, in order

Nearly all bytes decode as GB18030, even those of Korean, Japanese and Thai text, so decoding alone proves nothing.
GB18030 is chosen only if all of the text is Chinese: of the hanzi in a Chinese text, 0.6 to 0.8 are among the few
hundred most frequent ones, simplified or traditional; in text of another encoding only about 0.12 are. A likelihood
ratio decides, so a short text needs a greater share than a long one. Cost: one more read of such a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

from weitune.data.problems import Problem, data_problem
from weitune.data.read import encoding_scores as scores
from weitune.messages import say

_MISREAD_SHARE = 0.12
"""The greatest share of frequent hanzi in text of another encoding when it is decoded as GB18030."""
_MIN_LOG_RATIO = math.log(100)
"""Log of the likelihood ratio of Chinese to another encoding above which text counts as Chinese."""
_SECTION_HANZI = 128
"""Hanzi in each section of text that is tested separately, to detect a part in another encoding."""
_MIN_SECTION_SHARE = 0.15
_SAMPLE_BYTES = 1 << 16
_MAX_PIECE_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 12
_MIN_LINE_SCORE = 0.8
"""The lowest score at which a single line among lines of GB18030 counts as text of another encoding."""
_MIN_LINE_CHARACTERS = 6
"""Characters that a line needs to be tested separately."""
_MAX_TRIED_LINES = 10_000
"""Lines that are decoded in other encodings at most."""

_VALID_UTF8 = re.compile(rb"(?:[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})+")
_UTF8_LINE = re.compile(rb"[\x00-\x7f]*(?:[\xe0-\xef][\x80-\xbf]{2}[\x00-\x7f]*){4,}")
"""A line of UTF-8 with at least four characters of three bytes: never a line in another encoding."""
_NOT_ASCII = re.compile(rb"[\x80-\xff]+")
_ESCAPES = {b"\x1b$B": "iso2022_jp", b"\x1b$@": "iso2022_jp", b"\x1b$)C": "iso2022_kr", b"~{": "hz"}
"""What begins a section of other characters in encodings that write every character in ASCII bytes."""


class _Utf8:
    """Decides whether text is mostly UTF-8."""

    def __init__(self) -> None:
        self.invalid_line: int | None = None
        """The first line that is not UTF-8."""
        self.certain_line: int | None = None
        """The first line that can only be UTF-8."""
        self._valid = self._invalid = 0

    def feed(self, piece: bytes, line: int) -> None:
        valid = sum(map(len, _VALID_UTF8.findall(piece)))
        invalid = sum(map(len, _NOT_ASCII.findall(piece))) - valid
        self._valid += valid
        self._invalid += invalid
        if self.invalid_line is None and invalid:
            try:
                piece.decode("utf-8")
                self.invalid_line = line
            except UnicodeDecodeError as error:
                self.invalid_line = line + piece.count(b"\n", 0, error.start)
        if self.certain_line is None:
            matches = ((at, _UTF8_LINE.fullmatch(each)) for at, each in enumerate(piece.split(b"\n"), line))
            self.certain_line = next((at for at, match in matches if match), None)

    @property
    def is_majority(self) -> bool:
        """Whether most bytes beyond ASCII are UTF-8."""
        return self._valid > self._invalid


class _Chinese:
    """Decides whether text decoded as GB18030 is Chinese from beginning to end."""

    def __init__(self) -> None:
        self.possible = True
        """Whether all bytes so far decode."""
        self.foreign_line: int | None = None
        """The line at or near the beginning of the first text that decodes but is not Chinese."""
        self._all = self._frequent = self._tried = 0
        self._rest = ""

    def feed(self, piece: bytes, line: int) -> None:
        try:
            text = piece.decode(scores.CHINESE) if self.possible else ""
        except UnicodeDecodeError:
            self.possible = False
            return
        for at, each in enumerate(text.split("\n"), line):
            bare = scores.without_neutral(each)
            if self.foreign_line is None and self._tried < _MAX_TRIED_LINES and _is_foreign(bare):
                self._tried += 1
                original = [each.encode(scores.CHINESE)]
                others = (encoding for encoding in scores.ENCODINGS if encoding.codec != scores.CHINESE)
                best = max(scores.score_lines(other, original) for other in others)
                self.foreign_line = at if best >= _MIN_LINE_SCORE else None
            self._rest += bare
            while len(self._rest) >= _SECTION_HANZI:
                self._count(self._rest[:_SECTION_HANZI], at)
                self._rest = self._rest[_SECTION_HANZI:]

    def _count(self, section: str, line: int) -> None:
        count = scores.count_frequent_hanzi(section)
        self._all += len(section)
        self._frequent += count
        if count < _MIN_SECTION_SHARE * _SECTION_HANZI and len(section) == _SECTION_HANZI and self.foreign_line is None:
            self.foreign_line = line

    def finish(self) -> bool:
        """Return whether the text, all of which has been fed, can only be Chinese."""
        self._count(self._rest, 0)
        return self.possible and _evidence(self._all, self._frequent) >= _MIN_LOG_RATIO


def _evidence(count: int, frequent: int) -> float:
    """Return the log of the likelihood ratio of Chinese to another encoding, given the ``frequent`` of all hanzi."""
    chinese, other = scores.HANZI_SHARE, _MISREAD_SHARE
    gain, loss = math.log(chinese / other), math.log((1 - chinese) / (1 - other))
    return frequent * gain + (count - frequent) * loss


def _is_foreign(bare: str) -> bool:
    """Return whether a line decoded as GB18030 is more likely text of another encoding than Chinese."""
    frequent = scores.count_frequent_hanzi(bare)
    return len(bare) >= _MIN_LINE_CHARACTERS and _evidence(len(bare), frequent) <= -_MIN_LOG_RATIO


def detect(blocks: Iterable[bytes]) -> tuple[str, Problem | None]:
    """Return the encoding of text that is not UTF-8, and why it cannot be read if it cannot.

    Text that is mostly UTF-8 counts as damaged UTF-8: its rows can be read, and messages name the damaged ones.
    """
    line = 1
    utf8, chinese = _Utf8(), _Chinese()
    sample: list[bytes] = []
    for piece in _pieces(blocks):
        if not piece.isascii():
            utf8.feed(piece, line)
            chinese.feed(piece, line)
            _add_to(sample, (each for each in piece.split(b"\n") if not each.isascii()))
        line += piece.count(b"\n")
    certain = chinese.finish()
    foreign_lines = [number for number in (chinese.foreign_line, utf8.certain_line) if number is not None]
    if utf8.is_majority and (foreign_lines or not certain):
        return "utf-8", None
    likely = scores.ranked(sample, scores.ENCODINGS)
    if likely and likely[0].codec == scores.CHINESE and (certain or utf8.certain_line is not None):
        mixed = (
            data_problem("data.legacy_encodings.mixed_encodings", line=min(foreign_lines)) if foreign_lines else None
        )
        return scores.CHINESE, mixed
    return "utf-8", _unknown(likely or [scores.HARDLY_CHINESE] * chinese.possible, sample, utf8.invalid_line)


def check_escapes(blocks: Iterable[bytes], codec: str) -> Problem | None:
    """Return a fault if ``codec`` decodes the ASCII bytes to text of its language."""
    sample: list[bytes] = []
    for piece in _pieces(blocks):
        if b"\x1b$" in piece or b"~{" in piece:
            sample += [each for each in piece.split(b"\n") if b"\x1b$" in each or b"~{" in each]
        if sum(map(len, sample)) > _SAMPLE_BYTES:
            break
    likely = scores.ranked(sample, (scores.ASCII_ENCODINGS[codec],))
    return _unknown(likely, sample, None) if likely else None


def escape_in(block: bytes) -> str | None:
    """Return the encoding with ASCII bytes only that ``block`` may be in."""
    return next((codec for mark, codec in _ESCAPES.items() if mark in block), None)


def _pieces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut bytes after lines; cut a long line after a byte that is never a part of another character."""
    rest = b""
    for block in blocks:
        rest += block
        cut = rest.rfind(b"\n") + 1
        if not cut and len(rest) > _MAX_PIECE_BYTES:
            cut = max(rest.rfind(mark) for mark in (b" ", b'"', b",")) + 1
        if cut:
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _add_to(sample: list[bytes], lines: Iterable[bytes]) -> None:
    """Add ``lines`` that are not ASCII, each from shortly before its first character beyond ASCII on."""
    size = sum(map(len, sample))
    for line in lines:
        if size > _SAMPLE_BYTES:
            return
        first = _NOT_ASCII.search(line)
        start = max(0, first.start() - 20) if first is not None else 0
        sample.append(line[start : start + _MAX_LINE_BYTES])
        size += len(sample[-1])


def _unknown(likely: list[scores.Encoding], sample: list[bytes], line: int | None) -> Problem:
    """Return the fault of text in an unknown encoding; it names up to three ``likely`` ones."""
    if not likely:
        return data_problem("data.legacy_encodings.unknown_encoding", line=line)
    first, *others = likely[:3]
    text = next((text for each in sample if (text := scores.decode_piece(each, first.codec)) is not None), "")
    begin = next((at for at, char in enumerate(text) if char > "\x7f"), 0)
    return data_problem(
        "data.legacy_encodings.several_likely" if others else "data.legacy_encodings.one_likely",
        line=line,
        about=say(first.message_id),
        example="".join(filter(str.isprintable, text[max(0, begin - 8) : begin + 16])).strip(),
        others=", ".join(say(each.message_id) for each in others),
        codec=first.codec,
    )
