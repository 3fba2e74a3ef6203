"""Scores of how much decoded bytes look like text in the language of an encoding.

Decoded with the wrong encoding, text becomes rare letters of the same scripts. A score is the share of a language's
frequent characters, divided by their usual share: about 1 for text in that language, and far less otherwise.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

CHINESE = "gb18030"
HANZI_SHARE = 0.6
"""Share of frequent hanzi in Chinese text."""
_MIN_SCORE = 0.5
"""The lowest score of an encoding that a message names."""

_NEUTRAL = re.compile(
    "[\x00-\x7f\u2000-\u206f\u3000-\u3003\u3008-\u303f\uff00-\uff60\uffe0-\uffee\u2600-\u27bf\U0001f000-\U0001faff]+"
)
"""ASCII, punctuation and emoji, which occur in any language."""
_THAI_SYLLABLE = re.compile(
    "[\u0e40-\u0e44]?[\u0e01-\u0e2e][\u0e31\u0e34-\u0e3a\u0e47]?[\u0e48-\u0e4c]?[\u0e30\u0e32\u0e33\u0e45]?"
)
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fc]")
_KANA_SHARE = 0.35
_BESIDE_LETTER = re.compile("(?<=[A-Za-z])[^\x00-\x7f]|[^\x00-\x7f](?=[A-Za-z])")
_BESIDE_LETTER_OR_DIGIT = re.compile("(?<=[A-Za-z0-9])[^\x00-\x7f]|[^\x00-\x7f](?=[A-Za-z0-9])")

# The frequent characters are few on purpose: they make up more than half of any text in the language, but only about a
# tenth of letters drawn at random.
_HANZI = frozenset(
    # frequent in modern text
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多"
    "经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性"
    "知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次"
    "度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太量再感建"
    "务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路"
    "记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运"
    # of dialogues and instructions
    "吗呢吧啊呀请谢您谁哪怎喜欢爱找快慢吃喝买写读字句词语例案单简帮答近些每跟越晚早久网址址户岁钱笔"
    # the same in traditional characters
    "這個們來為國說時會對過發後裡裏種經麼學現當沒動還進樣開從實軍無與長機將兩間問應戰向頭體見產話給門員處義條氣題爾別變總電數報"
    "結務場計資統區隊決馬許請謝誰嗎歡愛買寫讀詞語單簡難權達記類據邊張該規萬術領確師觀讓識帶導爭運傳書聽卻點關業幾認兒東聲論點嗎"
    # of names
    "张王李赵陈杨吴刘黄周徐孙朱胡林郭罗郑梁宋唐邓冯韩曹曾彭萧蔡潘董袁余叶蒋杜苏魏吕丁沈姚卢傅钟姜崔谭范汪陆戴夏秦江"
    "伟芳娜静敏磊刚洋艳勇杰娟涛超秀霞燕玲丽桂兰英华玉梅红陳張劉楊趙黃吳孫鄭羅"
    # of classical texts
    "曰乎矣哉吾汝此彼夫焉豈岂乃遂亦故若皆君臣故未欲莫孰兮耶"
)

_HANGUL = frozenset(
    "이다는을가에의은하고지로도한기리사인아그나자어서를니대시들으해있보라주전정부여게수구일스요원장상모제조안동신용것등만세과거마"
    "야오우무문비치공관건적경교학국성진당선방면때까와했였습세요네저제떻게무엇무슨왜언제디누군좋말되내생각알려줘주십니까"
)
_THAI = frozenset("านรอกเงมยลวดตสทบคหปไใ่้ีัิำุแข")
_CYRILLIC = frozenset("оеаинтсрвлкм")
_GREEK = frozenset("αοιετσνηυρκςάίόέ")
_ARABIC = frozenset("المينروتبهعد")
_HEBREW = frozenset("יוהלאתמרשנ")
_WESTERN = frozenset("éèêëàâäáãåæçñóòôöøœíîïúùûüßÉÀÈÇÄÖÜÅÑÁÓÍÚ’‘“”–—…«»°€¿¡±½¼¾²³µ£§×·®©™")
_CENTRAL = frozenset("ąćęłńóśźżĄĆĘŁŃÓŚŹŻáčďéěíňřšťúůýžÁČĎÉĚÍŇŘŠŤÚŮÝŽőűăâîşţ’‘“”„–—…")
_TURKISH = frozenset("çğıİöşüÇĞÖŞÜâîû’‘“”–—…")

Score = Callable[[str], float]


def without_neutral(text: str) -> str:
    """Return ``text`` without the characters that occur in any language."""
    return _NEUTRAL.sub("", text)


def count_frequent_hanzi(text: str) -> int:
    """Return the number of characters of ``text`` that are among the most frequent hanzi."""
    return sum(map(_HANZI.__contains__, text))


def _share(letters: frozenset[str], text: str) -> float:
    return sum(map(letters.__contains__, text)) / len(text)


def _script_score(letters: frozenset[str], share: float) -> Score:
    """Return the score for a language with its own script, in whose text ``letters`` have this ``share``."""

    def score(text: str) -> float:
        text = without_neutral(text)
        return _share(letters, text) / share if text else 0.0

    return score


def _alphabet_score(letters: frozenset[str], share: float) -> Score:
    """Return the score for an alphabet that is not Latin, so that its words contain no ASCII letters."""
    script_score = _script_score(letters, share)

    def score(text: str) -> float:
        others = sum(char > "\x7f" for char in text)
        return script_score(text) * (1 - len(_BESIDE_LETTER.findall(text)) / others) if others else 0.0

    return score


def _latin_score(letters: frozenset[str]) -> Score:
    """Return the score for a language in Latin letters, most of which are ASCII."""

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
    """Return how well-formed Thai is: vowels and tone marks need a consonant; a third of random ones have none."""
    letters = without_neutral(text)
    covered = sum(len(syllable) for syllable in _THAI_SYLLABLE.findall(letters))
    return max(0.0, 1 - 4 * (1 - covered / len(letters))) * _THAI_LETTERS(text) if letters else 0.0


_THAI_LETTERS = _alphabet_score(_THAI, 0.85)
_CHINESE = _script_score(_HANZI, HANZI_SHARE)
_KOREAN = _script_score(_HANGUL, 0.6)
_RUSSIAN = _alphabet_score(_CYRILLIC, 0.7)


class Encoding(NamedTuple):
    """An encoding still in use, the message id of its names and language, and the score of text in that language."""

    codec: str
    message_id: str
    score: Score


ENCODINGS = (
    Encoding(CHINESE, "data.encoding_scores.gb18030", _CHINESE),
    Encoding("cp949", "data.encoding_scores.cp949", _KOREAN),
    Encoding("cp932", "data.encoding_scores.cp932", _japanese),
    Encoding("euc_jp", "data.encoding_scores.euc_jp", _japanese),
    Encoding("cp950", "data.encoding_scores.cp950", _CHINESE),
    Encoding("cp874", "data.encoding_scores.cp874", _thai),
    Encoding("cp1251", "data.encoding_scores.cp1251", _RUSSIAN),
    Encoding("koi8_r", "data.encoding_scores.koi8_r", _RUSSIAN),
    Encoding("cp866", "data.encoding_scores.cp866", _RUSSIAN),
    Encoding("iso8859_5", "data.encoding_scores.iso8859_5", _RUSSIAN),
    Encoding("cp1253", "data.encoding_scores.cp1253", _alphabet_score(_GREEK, 0.75)),
    Encoding("cp1256", "data.encoding_scores.cp1256", _alphabet_score(_ARABIC, 0.75)),
    Encoding("cp1255", "data.encoding_scores.cp1255", _alphabet_score(_HEBREW, 0.75)),
    Encoding("cp1252", "data.encoding_scores.cp1252", _latin_score(_WESTERN)),
    Encoding("cp1250", "data.encoding_scores.cp1250", _latin_score(_CENTRAL)),
    Encoding("cp1254", "data.encoding_scores.cp1254", _latin_score(_TURKISH)),
)
ASCII_ENCODINGS = {
    "iso2022_jp": Encoding("iso2022_jp", "data.encoding_scores.iso2022_jp", _japanese),
    "iso2022_kr": Encoding("iso2022_kr", "data.encoding_scores.iso2022_kr", _KOREAN),
    "hz": Encoding("hz", "data.encoding_scores.hz", _CHINESE),
}
"""Encodings that write every character in ASCII bytes."""
HARDLY_CHINESE = Encoding(CHINESE, "data.encoding_scores.hardly_chinese", _CHINESE)
"""The encoding to name if text decodes as GB18030 but is not text in any known encoding."""


def ranked(sample: Sequence[bytes], encodings: Iterable[Encoding]) -> list[Encoding]:
    """Return the encodings that the lines of ``sample`` may be in, the most likely first."""
    scores = {encoding: score_lines(encoding, sample) for encoding in encodings}
    return sorted((each for each in scores if scores[each] >= _MIN_SCORE), key=lambda each: -scores[each])


def score_lines(encoding: Encoding, lines: Sequence[bytes]) -> float:
    """Return the score of ``lines`` in the encoding's language; 0 if more than a tenth of them do not decode."""
    texts = [text for line in lines if (text := decode_piece(line, encoding.codec)) is not None]
    if len(texts) < 0.9 * len(lines) or not texts:
        return 0.0
    return encoding.score("\n".join(texts)) * len(texts) / len(lines)


def decode_piece(piece: bytes, codec: str) -> str | None:
    """Return the decoded ``piece``, which may end within a character; None if it does not decode."""
    try:
        return codecs.getincrementaldecoder(codec)().decode(piece)
    except UnicodeError:
        return None
