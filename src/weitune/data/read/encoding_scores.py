"""Scores of how much decoded bytes look like text in the language of an encoding.

Decoded with a wrong encoding, text becomes rare letters of the same scripts. A score is the share of a language's
frequent characters, divided by their share in its text: about 1 for such text, and far less for a misreading.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from weitune.data.read import frequent_characters

CHINESE = "gb18030"
HANZI_SHARE = 0.6
"""Share of frequent hanzi in Chinese text."""
_LIKELY = 0.5
"""Least score of an encoding that is worth a mention."""

_NEUTRAL = re.compile(
    "[\x00-\x7f\u2000-\u206f\u3000-\u3003\u3008-\u303f\uff00-\uff60\uffe0-\uffee\u2600-\u27bf\U0001f000-\U0001faff]+"
)
"""ASCII, and the punctuation and pictures that occur in any language."""
_THAI = re.compile(
    "[\u0e40-\u0e44]?[\u0e01-\u0e2e][\u0e31\u0e34-\u0e3a\u0e47]?[\u0e48-\u0e4c]?[\u0e30\u0e32\u0e33\u0e45]?"
)
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fc]")
_KANA_SHARE = 0.35
_BESIDE_LETTER = re.compile("(?<=[A-Za-z])[^\x00-\x7f]|[^\x00-\x7f](?=[A-Za-z])")
_BESIDE_LETTER_OR_DIGIT = re.compile("(?<=[A-Za-z0-9])[^\x00-\x7f]|[^\x00-\x7f](?=[A-Za-z0-9])")

Score = Callable[[str], float]


def without_neutral(text: str) -> str:
    """Return ``text`` without the characters that say nothing about its language."""
    return _NEUTRAL.sub("", text)


def _share(letters: frozenset[str], text: str) -> float:
    return sum(map(letters.__contains__, text)) / len(text)


def _of_script(letters: frozenset[str], share: float) -> Score:
    """Return the score for a language with a script of its own, in whose text ``letters`` have this ``share``."""

    def score(text: str) -> float:
        text = without_neutral(text)
        return _share(letters, text) / share if text else 0.0

    return score


def _of_alphabet(letters: frozenset[str], share: float) -> Score:
    """Return a score as :func:`_of_script`, for an alphabet whose words have no ASCII letters in them."""
    of_script = _of_script(letters, share)

    def score(text: str) -> float:
        others = sum(char > "\x7f" for char in text)
        return of_script(text) * (1 - len(_BESIDE_LETTER.findall(text)) / others) if others else 0.0

    return score


def _of_latin(letters: frozenset[str]) -> Score:
    """Return the score for a language that is written in ASCII letters with some others among them."""

    def score(text: str) -> float:
        others = "".join(char for char in text if char > "\x7f")
        if not others:
            return 0.0
        within = len(_BESIDE_LETTER_OR_DIGIT.findall(text)) / len(others)
        return _share(letters, others) / 0.9 * min(1.0, within / 0.8)

    return score


def _japanese(text: str) -> float:
    text = without_neutral(text)
    return min(1.0, len(_KANA.findall(text)) / len(text) / _KANA_SHARE) if text else 0.0


def _thai(text: str) -> float:
    """Return how well-formed Thai is: vowels and tones stand where they may; of random letters a third do not."""
    letters = without_neutral(text)
    covered = sum(len(syllable) for syllable in _THAI.findall(letters))
    return max(0.0, 1 - 4 * (1 - covered / len(letters))) * _THAI_LETTERS(text) if letters else 0.0


_THAI_LETTERS = _of_alphabet(frequent_characters.THAI, 0.85)
_HANZI = _of_script(frequent_characters.HANZI, HANZI_SHARE)
_HANGUL = _of_script(frequent_characters.HANGUL, 0.6)
_CYRILLIC = _of_alphabet(frequent_characters.CYRILLIC, 0.7)


class Encoding(NamedTuple):
    """An encoding that is still in use, the id of its names and language, and the score of text in that language."""

    codec: str
    message_id: str
    score: Score


ENCODINGS = (
    Encoding(CHINESE, "data.encoding_scores.gb18030", _HANZI),
    Encoding("cp949", "data.encoding_scores.cp949", _HANGUL),
    Encoding("cp932", "data.encoding_scores.cp932", _japanese),
    Encoding("euc_jp", "data.encoding_scores.euc_jp", _japanese),
    Encoding("cp950", "data.encoding_scores.cp950", _HANZI),
    Encoding("cp874", "data.encoding_scores.cp874", _thai),
    Encoding("cp1251", "data.encoding_scores.cp1251", _CYRILLIC),
    Encoding("koi8_r", "data.encoding_scores.koi8_r", _CYRILLIC),
    Encoding("cp866", "data.encoding_scores.cp866", _CYRILLIC),
    Encoding("iso8859_5", "data.encoding_scores.iso8859_5", _CYRILLIC),
    Encoding("cp1253", "data.encoding_scores.cp1253", _of_alphabet(frequent_characters.GREEK, 0.75)),
    Encoding("cp1256", "data.encoding_scores.cp1256", _of_alphabet(frequent_characters.ARABIC, 0.75)),
    Encoding("cp1255", "data.encoding_scores.cp1255", _of_alphabet(frequent_characters.HEBREW, 0.75)),
    Encoding("cp1252", "data.encoding_scores.cp1252", _of_latin(frequent_characters.WESTERN)),
    Encoding("cp1250", "data.encoding_scores.cp1250", _of_latin(frequent_characters.CENTRAL)),
    Encoding("cp1254", "data.encoding_scores.cp1254", _of_latin(frequent_characters.TURKISH)),
)
ASCII_ENCODINGS = {
    "iso2022_jp": Encoding("iso2022_jp", "data.encoding_scores.iso2022_jp", _japanese),
    "iso2022_kr": Encoding("iso2022_kr", "data.encoding_scores.iso2022_kr", _HANGUL),
    "hz": Encoding("hz", "data.encoding_scores.hz", _HANZI),
}
"""Encodings that write everything in ASCII bytes."""
HARDLY_CHINESE = Encoding(CHINESE, "data.encoding_scores.hardly_chinese", _HANZI)
"""Stands for text that decodes as GB18030 but is not text in any known encoding."""


def ranked(sample: Sequence[bytes], encodings: Iterable[Encoding]) -> list[Encoding]:
    """Return the encodings that the lines of ``sample`` may be in, the likeliest first."""
    scores = {encoding: score_lines(encoding, sample) for encoding in encodings}
    return sorted((each for each in scores if scores[each] >= _LIKELY), key=lambda each: -scores[each])


def score_lines(encoding: Encoding, lines: Sequence[bytes]) -> float:
    """Return how much like the encoding's language ``lines`` are, of which at most a tenth may be damaged."""
    texts = [text for line in lines if (text := decode_line(line, encoding.codec)) is not None]
    if len(texts) < 0.9 * len(lines) or not texts:
        return 0.0
    return encoding.score("\n".join(texts)) * len(texts) / len(lines)


def decode_line(line: bytes, codec: str) -> str | None:
    """Return ``line``, which may end within a character, as text; None if it does not decode."""
    try:
        return codecs.getincrementaldecoder(codec)().decode(line)
    except UnicodeError:
        return None
