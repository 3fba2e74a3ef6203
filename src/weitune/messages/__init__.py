"""Every message for people, by its id: ``say("run.lock.taken", folder=path)``.

The texts are JSON, one file for each package and language: ``en/run.json`` has the ids that begin with ``run.``. A text
is a :meth:`str.format` string whose fields are the values given. Most ids have one text; one that depends on a number
has the forms ``one`` and ``other``, of which the value ``count`` chooses. An error has a ``message`` and a ``fix``; a
problem in data has ``kind``, ``expected``, ``found`` and ``fix``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

LANGUAGE = "en"


def say(message_id: str, /, **values: object) -> str:
    """Return the text of ``message_id`` with ``values`` filled in. Raises KeyError if there is none."""
    text = _entry(message_id)
    if isinstance(text, dict):
        text = text["one" if values["count"] == 1 else "other"]
    return str(text).format(**values)


def texts(message_id: str, /, **values: object) -> dict[str, str]:
    """Return every text of ``message_id`` by its part, with ``values`` filled in. Raises KeyError if there is none."""
    return {part: text.format(**values) for part, text in _entry(message_id).items()}


def _entry(message_id: str) -> Any:
    package, _, name = message_id.partition(".")
    return catalogue(package)[name]


@cache
def catalogue(package: str, language: str = LANGUAGE) -> Mapping[str, str | Mapping[str, str]]:
    """Return the texts of one package by the rest of their ids."""
    file = resources.files(__package__) / language / f"{package}.json"
    entries: Mapping[str, str | Mapping[str, str]] = json.loads(file.read_text(encoding="utf-8"))
    return entries
