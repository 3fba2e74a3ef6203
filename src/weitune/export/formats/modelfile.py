"""Values in a Modelfile: what they can hold, and how they are written.

Ollama reads a Modelfile character by character. A value ends with its line; one that begins with three double quotes
ends with a line whose last characters, white space aside, are three double quotes. There are no escapes. Besides line
ends, spaces and tabs, Ollama keeps the characters that Go calls printable: letters, marks, numbers, punctuation and
symbols. No-break and ideographic spaces, joiners of emoji, Arabic and Indic scripts, control and private characters are
dropped silently.

Strings in a template can hold all of them: there they are Go string literals, which have escapes.
"""

from __future__ import annotations

import unicodedata

_WHITE = "\t\n\r "
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_NEWER_THAN_GO = range(0x2EBF0, 0x2EE5E)
"""Ideographs of Unicode 15.1, which Python 3.13 knows and Go's Unicode 15.0 does not."""
_THREE = '"""'


def can_hold(text: str) -> bool:
    """Return whether Ollama reads ``text`` back unchanged from a Modelfile, as :func:`quoted` writes it."""
    if not all(char in _WHITE or _prints(char) for char in text):
        return False
    first, *others = text.replace("\r", "\n").split("\n")
    lines = [f"{_THREE}{first}" if first.strip() else "", *others]
    return not any(line.rstrip().endswith(_THREE) for line in lines[:-1])


def quoted(text: str) -> str:
    """Return ``text`` as the value of a Modelfile's command."""
    return f"{_THREE}{text}{_THREE}" if set(text) & set('\n\r"') else f'"{text}"'


def go_action(text: str) -> str:
    """Return a Go template action that prints ``text``, in characters that a Modelfile keeps."""
    return f'{{{{ "{"".join(map(_escaped, text))}" }}}}' if text else ""


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char == " " or _prints(char):
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 1 << 16 else f"\\U{ord(char):08x}"


def _prints(char: str) -> bool:
    """Return whether Go's ``strconv.IsPrint`` is true: of white space, only the ordinary space is printable."""
    return char == " " or (unicodedata.category(char)[0] in "LMNPS" and ord(char) not in _NEWER_THAN_GO)
