"""The language of a text, as far as its script tells."""

from __future__ import annotations

import re

_SCRIPTS = {"ja": re.compile("[぀-ヿ]"), "ko": re.compile("[가-힣ᄀ-ᇿ]"), "zh": re.compile("[㐀-䶿一-鿿]")}
"""By language, the characters that only it has here: kana, Hangul, and last Han, which Japanese has, too."""
_LATIN = re.compile("[A-Za-zÀ-ɏ]")


def language_of(text: str) -> str | None:
    """Return ``ja``, ``ko``, ``zh``, or ``en`` for a text in Latin letters; None if it has no letter of these."""
    found = (name for name, script in _SCRIPTS.items() if script.search(text))
    return next(found, "en" if _LATIN.search(text) else None)
