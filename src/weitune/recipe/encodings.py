"""Check the name of an encoding: Python must know it, and it must be one that text files use."""

from __future__ import annotations

import codecs
import difflib
from encodings.aliases import aliases
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from weitune.messages import say

_NOT_OF_FILES = frozenset({"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"})
"""Encodings of host names and of Python's own source text, and one that refuses everything."""


def check_encoding(name: str) -> None:
    """Raise ValueError unless ``name`` is that of a text encoding."""
    try:
        encoding = codecs.lookup(name)
        "".encode(name)  # refuses those that turn bytes into bytes or text into text, such as base64 and rot13
        codecs.getincrementaldecoder(name)
    except LookupError as error:
        if "not a text encoding" in str(error):  # codecs says it in no other way
            raise ValueError(say("recipe.encodings.not_of_text", name=name)) from None
        raise ValueError(_unknown(name)) from None
    except ValueError:  # a character that no name has; the encoding that is undefined
        raise ValueError(say("recipe.encodings.unknown", name=repr(name))) from None
    if encoding.name in _NOT_OF_FILES:
        raise ValueError(say("recipe.encodings.not_of_files", name=name))


def _unknown(name: str) -> str:
    names = {*aliases, *(value.replace("_", "-") for value in aliases.values()), *aliases.values()}
    near = difflib.get_close_matches(name.lower(), sorted(filter(_is_known, names)), n=1, cutoff=0.6)
    if near:
        return say("recipe.encodings.unknown_near", name=name, near=near[0])
    return say("recipe.encodings.unknown", name=f"'{name}'")


def _is_known(name: str) -> bool:
    """Tell whether this system has the encoding: `ansi` and `oem` exist on Windows only."""
    try:
        codecs.lookup(name)
    except LookupError:
        return False
    return True


def _number_as_name(value: Any) -> Any:
    """Let `encoding: 1252` be a name: Python calls some encodings by a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _checked(value: str | dict[str, str]) -> str | dict[str, str]:
    for name in value.values() if isinstance(value, dict) else [value]:
        check_encoding(name)
    return value


Encodings = Annotated[str | dict[str, str], BeforeValidator(_number_as_name), AfterValidator(_checked)]
"""One encoding for all files, or one for each."""
