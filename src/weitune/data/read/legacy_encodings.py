"""Text that is not UTF-8 and does not say what it is: GB18030, if that is certain, and otherwise a fault with advice.

    bytes ─▶ every encoding that people still use ─▶ share of frequent characters ─▶ the likeliest, in order

GB18030 gives characters to nearly all bytes, Korean, Japanese and Thai text among them, so decoding alone proves
nothing. It is taken only if its text is Chinese throughout: 0.6 to 0.8 of the hanzi in any Chinese text are among the
few hundred most frequent ones, simplified or traditional, and about 0.12 where another encoding was read as GB18030.
The rule weighs the evidence, so a short text needs a greater share than a long one. Cost: one more read of such a file.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from weitune.data.problems import Problem, data_problem
from weitune.data.read import frequent_characters
from weitune.messages import say

CHINESE = "gb18030"
_EXPECTED, _MISREAD = 0.6, 0.12
"""Share of frequent hanzi in Chinese text, and the most in text of another encoding that was read as GB18030."""
_CERTAIN = math.log(100)
"""How much likelier Chinese must be than a misreading, as a logarithm."""
_STRETCH = 128
"""Hanzi of a stretch of text that is judged for itself, so that a part in another encoding shows."""
_LEAST_OF_A_STRETCH = 0.15
_SAMPLE = 1 << 16
_LONGEST_PIECE = 1 << 20
_LONGEST_LINE = 1 << 12
_LIKELY = 0.5
"""Least score of an encoding that is named."""
_GOOD = 0.8
"""Least score of another encoding for a single line among lines of GB18030."""
_LEAST_OF_A_LINE = 6
"""Characters of a line that is judged for itself."""
_MOST_TRIED = 10_000
"""Lines that are tried in other encodings."""

_NEUTRAL = re.compile(
    "[\x00-\x7f\u2000-\u206f\u3000-\u3003\u3008-\u303f\uff00-\uff60\uffe0-\uffee\u2600-\u27bf\U0001f000-\U0001faff]+"
)
"""ASCII, and the punctuation and pictures that go with any language."""
_GOOD_UTF8 = re.compile(rb"(?:[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})+")
_UTF8_LINE = re.compile(rb"[\x00-\x7f]*(?:[\xe0-\xef][\x80-\xbf]{2}[\x00-\x7f]*){4,}")
"""A line of UTF-8 with at least four characters of three bytes: never a line of anything else."""
_HIGH = re.compile(rb"[\x80-\xff]+")
_THAI = re.compile(
    "[\u0e40-\u0e44]?[\u0e01-\u0e2e][\u0e31\u0e34-\u0e3a\u0e47]?[\u0e48-\u0e4c]?[\u0e30\u0e32\u0e33\u0e45]?"
)
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fc]")
_IN_WORDS = re.compile("(?<=[A-Za-z])[^\x00-\x7f]|[^\x00-\x7f](?=[A-Za-z])")
_BESIDE = re.compile("(?<=[A-Za-z0-9])[^\x00-\x7f]|[^\x00-\x7f](?=[A-Za-z0-9])")
_ESCAPES = {b"\x1b$B": "iso2022_jp", b"\x1b$@": "iso2022_jp", b"\x1b$)C": "iso2022_kr", b"~{": "hz"}
"""Encodings that write everything in ASCII, and how they begin a stretch of other characters."""


def _share_of(letters: frozenset[str], expected: float) -> Callable[[str], float]:
    """Return a score for text in a script of its own: 1 if ``letters`` make up the share of it that is ``expected``."""

    def score(text: str) -> float:
        found = _NEUTRAL.sub("", text)
        return sum(map(letters.__contains__, found)) / len(found) / expected if found else 0.0

    return score


def _words_of(letters: frozenset[str], expected: float) -> Callable[[str], float]:
    """Return a score as :func:`_share_of`, for an alphabet whose words hold no letters of ASCII."""
    share = _share_of(letters, expected)

    def score(text: str) -> float:
        odd = sum(char > "\x7f" for char in text)
        return share(text) * (1 - len(_IN_WORDS.findall(text)) / odd) if odd else 0.0

    return score


def _japanese(text: str) -> float:
    found = _NEUTRAL.sub("", text)
    return min(1.0, len(_KANA.findall(found)) / len(found) / 0.35) if found else 0.0


def _thai(text: str) -> float:
    """Return how well-formed Thai is: vowels and tones stand where they can; of random letters a third does not."""
    found = _NEUTRAL.sub("", text)
    covered = sum(len(syllable) for syllable in _THAI.findall(found))
    return max(0.0, 1 - 4 * (1 - covered / len(found))) * _THAI_LETTERS(text) if found else 0.0


_THAI_LETTERS = _words_of(frequent_characters.THAI, 0.85)


def _among_latin(letters: frozenset[str]) -> Callable[[str], float]:
    """Return a score for text in which some letters stand among those of ASCII."""

    def score(text: str) -> float:
        found = [char for char in text if char > "\x7f"]
        if not found:
            return 0.0
        within = len(_BESIDE.findall(text)) / len(found)
        return sum(map(letters.__contains__, found)) / len(found) / 0.9 * min(1.0, within / 0.8)

    return score


class Encoding(NamedTuple):
    """An encoding that people still use: its names and language, and how much like that language a text is."""

    codec: str
    about: str
    score: Callable[[str], float]


_HANZI = _share_of(frequent_characters.HANZI, _EXPECTED)
_CYRILLIC = _words_of(frequent_characters.CYRILLIC, 0.7)
ENCODINGS = (
    Encoding(CHINESE, "gb18030 (Chinese, also GBK)", _HANZI),
    Encoding("cp949", "cp949 or euc_kr (Korean)", _share_of(frequent_characters.HANGUL, 0.6)),
    Encoding("cp932", "cp932 or shift_jis (Japanese)", _japanese),
    Encoding("euc_jp", "euc_jp (Japanese)", _japanese),
    Encoding("cp950", "cp950 or big5 (Traditional Chinese)", _HANZI),
    Encoding("cp874", "cp874 or tis-620 (Thai)", _thai),
    Encoding("cp1251", "cp1251 (Cyrillic)", _CYRILLIC),
    Encoding("koi8_r", "koi8-r (Cyrillic)", _CYRILLIC),
    Encoding("cp866", "cp866 (Cyrillic)", _CYRILLIC),
    Encoding("iso8859_5", "iso8859-5 (Cyrillic)", _CYRILLIC),
    Encoding("cp1253", "cp1253 (Greek)", _words_of(frequent_characters.GREEK, 0.75)),
    Encoding("cp1256", "cp1256 (Arabic)", _words_of(frequent_characters.ARABIC, 0.75)),
    Encoding("cp1255", "cp1255 (Hebrew)", _words_of(frequent_characters.HEBREW, 0.75)),
    Encoding("cp1252", "cp1252 or latin-1 (Western European)", _among_latin(frequent_characters.WESTERN)),
    Encoding("cp1250", "cp1250 (Central European)", _among_latin(frequent_characters.CENTRAL)),
    Encoding("cp1254", "cp1254 (Turkish)", _among_latin(frequent_characters.TURKISH)),
)
_IN_ASCII = {
    "iso2022_jp": Encoding("iso2022_jp", "iso2022_jp (Japanese)", _japanese),
    "iso2022_kr": Encoding("iso2022_kr", "iso2022_kr (Korean)", _share_of(frequent_characters.HANGUL, 0.6)),
    "hz": Encoding("hz", "hz (Chinese)", _HANZI),
}


class _Chinese:
    """Judges whether text decoded as GB18030 is Chinese, all of it."""

    def __init__(self) -> None:
        self.possible = True
        """Whether all bytes so far decode."""
        self.odd_line: int | None = None
        """The line near which text begins that decodes, but is not Chinese."""
        self._all = self._frequent = self._tried = 0
        self._rest = ""

    def feed(self, piece: bytes, line: int) -> None:
        """Take the next lines into account; the first of them is the file's ``line``."""
        try:
            text = piece.decode(CHINESE) if self.possible else ""
        except UnicodeDecodeError:
            self.possible = False
            return
        for at, each in enumerate(text.split("\n"), line):
            bare = _NEUTRAL.sub("", each)
            if self.odd_line is None and self._tried < _MOST_TRIED and _is_odd(bare):
                self._tried += 1
                self.odd_line = at if _reads_better(each.encode(CHINESE)) else None
            self._rest += bare
            while len(self._rest) >= _STRETCH:
                self._judge(self._rest[:_STRETCH], at)
                self._rest = self._rest[_STRETCH:]

    def _judge(self, stretch: str, line: int) -> None:
        count = sum(map(frequent_characters.HANZI.__contains__, stretch))
        self._all += len(stretch)
        self._frequent += count
        if count < _LEAST_OF_A_STRETCH * _STRETCH and len(stretch) == _STRETCH and self.odd_line is None:
            self.odd_line = line

    @property
    def certain(self) -> bool:
        """Whether the text as a whole can only be Chinese."""
        self._judge(self._rest, 0)
        self._rest = ""
        return self.possible and _evidence(self._all, self._frequent) >= _CERTAIN


def _evidence(count: int, frequent_ones: int) -> float:
    """Return how much likelier Chinese is than a misreading, as a logarithm, if so many of ``count`` are frequent."""
    gain, loss = math.log(_EXPECTED / _MISREAD), math.log((1 - _EXPECTED) / (1 - _MISREAD))
    return frequent_ones * gain + (count - frequent_ones) * loss


def _is_odd(bare: str) -> bool:
    """Tell whether a line of GB18030 is more like a misreading than like Chinese."""
    return len(bare) >= _LEAST_OF_A_LINE and (
        _evidence(len(bare), sum(map(frequent_characters.HANZI.__contains__, bare))) <= -_CERTAIN
    )


def _reads_better(line: bytes) -> bool:
    """Tell whether a line that GB18030 makes odd text of is good text in another encoding."""
    return any(_score(each, [line]) >= _GOOD for each in ENCODINGS if each.codec != CHINESE)


_RARE = Encoding(CHINESE, "gb18030, but hardly Chinese", _HANZI)
"""How text is called that decodes as GB18030 and is no text in any encoding that is known."""


def judge(blocks: Iterable[bytes]) -> tuple[str, Problem | None]:
    """Return the encoding of text that is not UTF-8, and what stands against reading it.

    Text that is UTF-8 for the greater part counts as damaged UTF-8: its rows can be read, and the damaged ones named.
    """
    line = 1
    good = bad = 0
    first_bad: int | None = None
    utf8_line: int | None = None
    chinese = _Chinese()
    sample: list[bytes] = []
    for piece in _pieces(blocks):
        if not piece.isascii():
            well = sum(map(len, _GOOD_UTF8.findall(piece)))
            high = sum(map(len, _HIGH.findall(piece)))
            good, bad = good + well, bad + high - well
            if first_bad is None and high > well:
                first_bad = line + _newlines_before_damage(piece)
            others = [(at, each) for at, each in enumerate(piece.split(b"\n"), line) if not each.isascii()]
            if utf8_line is None:
                utf8_line = next((at for at, each in others if _UTF8_LINE.fullmatch(each)), None)
            chinese.feed(piece, line)
            _add_to(sample, (each for _, each in others))
        line += piece.count(b"\n")
    surely_chinese = chinese.certain
    if good > bad and (utf8_line is not None or chinese.odd_line is not None or not surely_chinese):
        return "utf-8", None
    likely = _ranked(sample, ENCODINGS)
    if likely and likely[0].codec == CHINESE and (surely_chinese or utf8_line is not None):
        odd = min((n for n in (chinese.odd_line, utf8_line) if n is not None), default=None)
        return CHINESE, _mixed(odd) if odd is not None else None
    return "utf-8", _unknown(likely or [_RARE] * chinese.possible, sample, first_bad)


def escaped(blocks: Iterable[bytes], codec: str) -> Problem | None:
    """Return a fault if text that is all ASCII says more when ``codec``, an encoding in ASCII, decodes it."""
    sample: list[bytes] = []
    for piece in _pieces(blocks):
        if b"\x1b$" in piece or b"~{" in piece:
            sample += [each for each in piece.split(b"\n") if b"\x1b$" in each or b"~{" in each]
        if sum(map(len, sample)) > _SAMPLE:
            break
    likely = _ranked(sample, (_IN_ASCII[codec],))
    return _unknown(likely, sample, None) if likely else None


def escape_in(block: bytes) -> str | None:
    """Return the encoding in ASCII that ``block`` may be in."""
    return next((codec for mark, codec in _ESCAPES.items() if mark in block), None)


def _pieces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut bytes after a line, or within a long one after a character that is part of no other in any encoding."""
    rest = b""
    for block in blocks:
        rest += block
        cut = rest.rfind(b"\n") + 1
        if not cut and len(rest) > _LONGEST_PIECE:
            cut = max(rest.rfind(mark) for mark in (b" ", b'"', b",")) + 1
        if cut:
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _newlines_before_damage(piece: bytes) -> int:
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError as error:
        return piece.count(b"\n", 0, error.start)
    return 0


def _add_to(sample: list[bytes], lines: Iterable[bytes]) -> None:
    """Add ``lines`` that are not ASCII, each from a little before its first other character on."""
    size = sum(map(len, sample))
    for line in lines:
        if size > _SAMPLE:
            return
        first = _HIGH.search(line)
        start = max(0, first.start() - 20) if first is not None else 0
        sample.append(line[start : start + _LONGEST_LINE])
        size += len(sample[-1])


def _ranked(sample: list[bytes], encodings: Iterable[Encoding]) -> list[Encoding]:
    """Return the encodings that ``sample`` may be in, the likeliest first."""
    scores = {encoding: _score(encoding, sample) for encoding in encodings}
    return sorted((each for each in scores if scores[each] >= _LIKELY), key=lambda each: -scores[each])


def _score(encoding: Encoding, sample: list[bytes]) -> float:
    """Return how much like the encoding's language the lines of ``sample`` are; a few may be damaged."""
    texts = [text for line in sample if (text := _decoded(line, encoding.codec)) is not None]
    if len(texts) < 0.9 * len(sample) or not texts:
        return 0.0
    return encoding.score("\n".join(texts)) * len(texts) / len(sample)


def _decoded(line: bytes, codec: str) -> str | None:
    """Return ``line`` as text; it may end within a character."""
    try:
        return codecs.getincrementaldecoder(codec)().decode(line)
    except UnicodeError:
        return None


def _unknown(likely: list[Encoding], sample: list[bytes], line: int | None) -> Problem:
    expected = say("data.legacy_encodings.utf_8_utf_16")
    if not likely:
        found = say("data.legacy_encodings.bytes_none_these_nor")
        fix = say("data.legacy_encodings.save_file_utf_8")
        return data_problem(
            "data.legacy_encodings.unknown_encoding", line=line, expected=expected, found=found, fix=fix
        )
    first, *others = likely[:3]
    text = next((text for each in sample if (text := _decoded(each, first.codec)) is not None), "")
    begin = next((at for at, char in enumerate(text) if char > "\x7f"), 0)
    example = "".join(filter(str.isprintable, text[max(0, begin - 8) : begin + 16])).strip()
    rest = f", or as {' or '.join(each.about for each in others)}" if others else ""
    found = say("data.legacy_encodings.bytes_read", about=first.about, example=example, rest=rest)
    fix = say("data.legacy_encodings.if_right_say_so", codec=first.codec)
    return data_problem("data.legacy_encodings.unknown_encoding", line=line, expected=expected, found=found, fix=fix)


def _mixed(line: int) -> Problem:
    return data_problem("data.legacy_encodings.mixed_encodings", line=line)
