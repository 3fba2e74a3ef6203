"""Tell an English text, from a file or from another library, in the user's language.

A text is recognised by the template that made it: ``stopped after step 7`` is ``stopped after step {step}``, so its
translation is that of the template, with the same 7.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from functools import cache

from weitune.messages import Told, catalogue
from weitune.messages.language import language


def translated(text: str, *packages: str) -> str:
    """Return an English ``text`` that a message of one of ``packages`` made, in the user's language.

    It knows itself in English, too. Returns it as it is if no message made it, or the language is English.
    """
    here = language()
    if here == "en" or isinstance(text, Told):
        return text
    pairs = (pair for package in packages for pair in _pairs(catalogue(package), catalogue(package, here)))
    found = by_templates(text, dict(pairs))
    return text if found == text else Told(found, text)


def by_templates(text: str, templates: Mapping[str, str]) -> str:
    """Return the translation of ``text`` by ``templates`` (English template: translation); ``text`` if none fits.

    Of several that fit, the one with most text of its own counts; one without a letter of its own never does.
    """
    if text in templates:
        return templates[text]
    fitting = [template for template in templates if "{" in template and _pattern(template).fullmatch(text)]
    template = max(fitting, key=lambda each: len(_own(each)), default="")
    found = _pattern(template).fullmatch(text)
    if found is None or not re.search("[a-z]", _own(template)):
        return text
    return _filled(templates[template], dict(zip(_names(template), found.groups(), strict=True)))


def _pairs(english: Mapping[str, object], others: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield every English text with its translation, where there is one."""
    for name, entry in english.items():
        other = others.get(name)
        for part, text in entry.items() if isinstance(entry, Mapping) else (("", entry),):
            translation = other.get(part) if isinstance(other, Mapping) else other
            if translation:
                yield str(text), str(translation)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = string.Formatter().parse(template)
    return re.compile(
        "".join(re.escape(text) + ("(.+?)" if name is not None else "") for text, name, *_ in parts), re.DOTALL
    )


def _own(template: str) -> str:
    return "".join(text for text, *_ in string.Formatter().parse(template))


def _names(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def _filled(template: str, values: Mapping[str, str]) -> str:
    parts = string.Formatter().parse(template)
    return "".join(text + (values[name] if name is not None else "") for text, name, _, _ in parts)
