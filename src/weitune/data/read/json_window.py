"""A window that moves over the text of a JSON file, and the decoder of the values in it.

[ {…}, {…},        the window knows the line and column of every position in it; it drops the text before the current
  {…} ]            position, so memory holds one window and its rows, however long the file is
"""

from __future__ import annotations

import json
import re
from typing import IO, Any

from weitune.data.conversation import Origin
from weitune.data.formats.strict_json import MAX_DEPTH, repeated_keys, too_deep
from weitune.data.problems import Problem, data_problem

_WINDOW = 1 << 18
_LONGEST_TOKEN = 12
"""Characters of an escaped surrogate pair, the longest token of JSON besides strings and numbers."""
_SPACE = re.compile(r"[ \t\r\n]*")
_BLANK = re.compile(r"[\s\ufeff]*")
_BLANK_IN_LINE = re.compile(r"(?:[^\S\n]|\ufeff)*")
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")
_LINES_END = re.compile(r"[ \t\r]*\n\s*")


class Decoder:
    """The JSON decoder of the standard library (in C), which also collects repeated keys."""

    def __init__(self) -> None:
        self.repeated: list[str] = []
        """Keys that an object in the last decoded value has more than once."""
        self._decode = json.JSONDecoder(object_pairs_hook=self._object).raw_decode

    def decode(self, text: str, at: int) -> tuple[Any, int]:
        """Return the value at ``at`` and its end.

        Raises JSONDecodeError, ValueError for a number with thousands of digits, or RecursionError if the value is
        nested too deeply.
        """
        self.repeated.clear()
        value, end = self._decode(text, at)
        if end - at > 2 * MAX_DEPTH and too_deep(value):
            raise RecursionError
        return value, end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            self.repeated += repeated_keys(pairs)
        return value

    def problems(self, origin: Origin) -> tuple[Problem, ...]:
        return tuple(repeated_key(key).at(origin) for key in self.repeated) if self.repeated else ()


def repeated_key(key: str) -> Problem:
    """Return the fault of an object that has ``key`` twice."""
    return data_problem("data.json_window.repeated_key", field=key, key=key)


def after_space(text: str, at: int) -> int:
    """Return the first position from ``at`` on that is not white space in JSON."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


class Window:
    """A piece of the file's ``text``; ``at`` is the current position in it, and ``line`` its line from 1."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.text = ""
        self.at = 0
        self.line = 1
        self._column = 1
        self._read_to_end = False
        self.more()

    @property
    def ended(self) -> bool:
        return self.at >= len(self.text) and not self.more()

    def peek(self) -> str:
        """Return the character at the position, or "" at the end of the file."""
        return "" if self.ended else self.text[self.at]

    def more(self) -> bool:
        """Drop the text before the position and at least double the rest; return whether there was more text."""
        block = "" if self._read_to_end else self._stream.read(max(_WINDOW, len(self.text) - self.at))
        if not block:
            self._read_to_end = True
            return False
        self._column = self.place(self.at)[1]
        self.text = self.text[self.at :] + block
        self.at = 0
        return True

    def move(self, at: int) -> None:
        self.line += self.text.count("\n", self.at, at)
        self.at = at

    def place(self, at: int) -> tuple[int, int]:
        """Return line and column, both from 1, of ``at``, which is not before the position."""
        newline = self.text.rfind("\n", 0, at)
        column = at - newline if newline >= 0 else self._column + at
        return self.line + self.text.count("\n", self.at, at), column

    def pass_comma(self) -> bool:
        """Skip a comma and the white space around it; return whether there was a comma."""
        match = _COMMA.match(self.text, self.at)
        if match is not None and match.end() < len(self.text):  # the usual case, and faster
            self.move(match.end())
            return True
        self.skip_space()
        if self.peek() != ",":
            return False
        self.move(self.at + 1)
        self.skip_space()
        return True

    def skip_space(self) -> None:
        self._skip(_SPACE)

    def skip_blank(self) -> bool:
        """Skip white space of any kind and byte order marks; return whether anything is left of the file."""
        self._skip(_BLANK)
        return not self.ended

    def skip_blank_in_line(self) -> None:
        self._skip(_BLANK_IN_LINE)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        while True:
            match = pattern.match(self.text, self.at)
            if match is not None:
                self.move(match.end())
            if self.at < len(self.text) or not self.more():
                return

    def line_end(self, most: int) -> tuple[int, str] | None:
        """Return the end of the current line and the first character of the next line that is not blank.

        The character is a space if that line is indented, and "" at the end of the file. Returns None if the line has
        more than about ``most`` characters.
        """
        while True:
            end = self.text.find("\n", self.at)
            blank = _BLANK.match(self.text, end) if end >= 0 else None
            if blank is not None and blank.end() < len(self.text):
                return end, self.text[blank.end()] if self.text[blank.end() - 1] in "\n\ufeff" else " "
            if len(self.text) - self.at > most:
                return None
            if not self.more():
                return (end if end >= 0 else len(self.text)), ""

    def skip_line(self) -> None:
        while (end := self.text.find("\n", self.at)) < 0:
            self.move(len(self.text))
            if not self.more():
                return
        self.move(end + 1)


def whole_values(window: Window, decoder: Decoder) -> list[Any]:
    """Decode the values in the window that a comma and more text follow, and move past them and their commas.

    This is the fast path through an array. It stops before a value that may have a fault; the slow path, which decodes
    one value at a time, reports the fault.
    """
    if values := _objects_at_once(window, decoder):
        return values
    text, at = window.text, window.at
    try:
        while True:
            value, end = decoder.decode(text, at)
            comma = _COMMA.match(text, end)
            if comma is None or comma.end() == len(text) or decoder.repeated:
                break
            values.append(value)
            at = comma.end()
    except (ValueError, RecursionError):
        pass
    window.move(at)
    return values


def _objects_at_once(window: Window, decoder: Decoder) -> list[Any]:
    """Decode the values up to the last object in the window that a comma follows, as one array.

    The result is that of decoding them one at a time if the decoded array ends at the end of the piece.
    """
    end = window.text.rfind("},", window.at) + 1
    comma = _COMMA.match(window.text, end)
    if not end or comma is None or comma.end() == len(window.text):
        return []
    piece = f"[{window.text[window.at : end]}]"
    try:
        values, stop = decoder.decode(piece, 0)
    except (ValueError, RecursionError):
        return []
    if stop < len(piece) or decoder.repeated:
        return []
    window.move(comma.end())
    return list(values)


def whole_lines(window: Window, decoder: Decoder) -> list[tuple[int, Any]]:
    """Decode the objects in the window that share no line, and move past them; return (line, object) pairs.

    This is a fast path like :func:`whole_values`.
    """
    text, at, line = window.text, window.at, window.line
    values = []
    try:
        while text.startswith("{", at):
            value, end = decoder.decode(text, at)
            ends = _LINES_END.match(text, end)
            if ends is None or ends.end() == len(text) or decoder.repeated:
                break
            values.append((line, value))
            first = text.find("\n", at)  # far cheaper than counting from ``at`` on in a long line
            line += text.count("\n", first, ends.end())
            at = ends.end()
    except (ValueError, RecursionError):
        pass
    window.at, window.line = at, line
    return values


def cut_off(error: Exception, window: Window) -> bool:
    """Return whether the end of the window may be the only cause of ``error``."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(window.text) - _LONGEST_TOKEN
