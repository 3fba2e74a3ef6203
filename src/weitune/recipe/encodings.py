"""Names of encodings, as Python knows them: only those that a file of text can be in."""

from __future__ import annotations

import codecs
import difflib
from encodings.aliases import aliases

_NOT_OF_FILES = frozenset({"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"})
"""Encodings of host names and of Python's own source text, and one that refuses everything."""


def check_encoding(name: str) -> None:
    """Raise ValueError unless ``name`` is that of an encoding of text."""
    try:
        found = codecs.lookup(name)
        "".encode(name)  # refuses those that turn bytes into bytes or text into text, such as base64 and rot13
        codecs.getincrementaldecoder(name)
    except LookupError as error:
        if "not a text encoding" in str(error):
            raise ValueError(f"'{name}' is no encoding of text") from None
        raise ValueError(f"there is no encoding '{name}'{_nearest(name)}") from None
    except ValueError:  # a character that no name has; the encoding that is undefined
        raise ValueError(f"there is no encoding {name!r}") from None
    if found.name in _NOT_OF_FILES:
        raise ValueError(f"'{name}' is no encoding of files")


def _nearest(name: str) -> str:
    known = sorted(
        filter(_is_known, {*aliases, *(value.replace("_", "-") for value in aliases.values()), *aliases.values()})
    )
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def _is_known(name: str) -> bool:
    """Tell whether this system has the encoding: `ansi` and `oem` are names on Windows alone."""
    try:
        codecs.lookup(name)
    except LookupError:
        return False
    return True
