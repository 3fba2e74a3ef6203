"""Every message for people, by its id: ``say("run.lock.taken", folder=path)``.

The texts are JSON, one file for each package and language: ``en/run.json`` has the ids that begin with ``run.``, and
``zh/run.json`` the same ones in Chinese. A text is a :meth:`str.format` string whose fields are the values given. Most
ids have one text; one that depends on a number has the forms ``one`` and ``other``, of which the value ``count``
chooses (Chinese needs no forms). An error has a ``message`` and a ``fix``; a problem in data has ``kind``,
``expected``, ``found`` and ``fix``.

:mod:`.language` decides which language is told. What programs read is English whatever it is: a text in another
language is a :class:`Told`, which knows itself in English, and JSON is written with :func:`in_english`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

from weitune.messages.language import Language, language, speaking


class Told(str):
    """A text in the language of the user, which knows itself in English."""

    __slots__ = ("english",)
    english: str

    def __new__(cls, text: str, english: str) -> Told:
        told = super().__new__(cls, text)
        told.english = english
        return told

    def __reduce__(self) -> tuple[type[Told], tuple[str, str]]:
        return Told, (str(self), self.english)


def say(message_id: str, /, **values: object) -> str:
    """Return the text of ``message_id`` with ``values`` filled in. Raises KeyError if there is none."""
    here = language()
    told = _form(_entry(message_id, here), values).format(**values)
    if here == "en":
        return told
    with speaking("en"):
        return Told(told, _form(_entry(message_id, "en"), values).format(**in_english(values)))


def texts(message_id: str, /, **values: object) -> dict[str, str]:
    """Return every text of ``message_id`` by its part, with ``values`` filled in. Raises KeyError if there is none."""
    here = language()
    told = {part: text.format(**values) for part, text in _entry(message_id, here).items()}
    if here == "en":
        return told
    with speaking("en"):
        plain = {part: text.format(**in_english(values)) for part, text in _entry(message_id, "en").items()}
    return {part: Told(text, plain[part]) for part, text in told.items()}


def in_english(value: Any) -> Any:
    """Return ``value``, a tree as JSON has it, with every :class:`Told` in it in English."""
    if isinstance(value, Told):
        return value.english
    if isinstance(value, Mapping):
        return {in_english(key): in_english(each) for key, each in value.items()}
    return [in_english(each) for each in value] if isinstance(value, list | tuple) else value


def joined(separator: str, parts: Iterable[str]) -> str:
    """Return ``parts`` with ``separator`` between them, as :meth:`str.join` does; it knows itself in English, too."""
    parts = list(parts)
    text, english = separator.join(parts), separator.join(map(in_english, parts))
    return text if text == english else Told(text, english)


def _form(text: str | Mapping[str, str], values: Mapping[str, object]) -> str:
    return text if isinstance(text, str) else text["one" if values["count"] == 1 else "other"]


def _entry(message_id: str, here: Language) -> Any:
    """Return the texts of an id in the language ``here``; in English if it has none there."""
    package, _, name = message_id.partition(".")
    return catalogue(package, here).get(name) or catalogue(package)[name]


@cache
def catalogue(package: str, here: Language = "en") -> Mapping[str, str | Mapping[str, str]]:
    """Return the texts of one package by the rest of their ids."""
    file = resources.files(__package__) / here / f"{package}.json"
    if here != "en" and not file.is_file():
        return {}
    entries: Mapping[str, str | Mapping[str, str]] = json.loads(file.read_text(encoding="utf-8"))
    return entries
