"""Text as HTML, in every language of the page that it stands on.

    "step 40"                         ─▶ step 40
    say("report.run_report.after")    ─▶ <span class="en" lang="en">after</span><span class="zh" lang="zh">训练后</span>

A page is written in Chinese (:func:`both_languages`), since such a message knows itself in English, too. What no
message made, such as an answer, stands there once. The style sheet hides what is not the reader's language.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from html import escape

from weitune.messages import Told
from weitune.messages.language import speaking

_SCRIPTS = {"ja": re.compile("[぀-ヿ]"), "ko": re.compile("[가-힣ᄀ-ᇿ]"), "zh": re.compile("[㐀-䶿一-鿿]")}
"""By language, the characters that only it has here: kana, Hangul, and last Han, which Japanese has, too."""
_LATIN = re.compile("[A-Za-zÀ-ɏ]")


def both_languages() -> AbstractContextManager[None]:
    """Make messages, while the block runs, that :func:`text` writes in both languages."""
    return speaking("zh")


def versions(value: object) -> dict[str, str]:
    """Return a text by its language, English first; by the empty string if it is the same in all."""
    if isinstance(value, Told) and value.english != str(value):
        return {"en": value.english, "zh": str(value)}
    return {"": str(value)}


def text(value: object) -> str:
    """Return ``value`` as HTML text, without markup."""
    return _in_each_language(value, escape)


def prose(sentence: str) -> str:
    """Return a sentence as HTML, with what stands between backticks as code."""
    return _in_each_language(sentence, lambda words: re.sub("`([^`]+)`", r"<code>\1</code>", escape(words)))


def attributes(name: str, value: str) -> str:
    """Return an attribute with ``value``, and one called ``name-zh`` if it is another one in Chinese."""
    named = {"": name, "en": name, "zh": f"{name}-zh"}
    return "".join(f' {named[each]}="{escape(words)}"' for each, words in versions(value).items())


def lang(value: object) -> str:
    """Return the attribute that names the language of a text that no message made."""
    found = None if isinstance(value, Told) else language_of(str(value))
    return "" if found is None else f' lang="{found}"'


def language_of(text: str) -> str | None:
    """Return ``ja``, ``ko``, ``zh``, or ``en`` for a text in Latin letters; None if it has no letter of these."""
    found = (name for name, script in _SCRIPTS.items() if script.search(text))
    return next(found, "en" if _LATIN.search(text) else None)


def _in_each_language(value: object, html: Callable[[str], str]) -> str:
    return "".join(
        f'<span class="{name}" lang="{name}">{html(words)}</span>' if name else html(words)
        for name, words in versions(value).items()
    )
