"""A JSON file as a window of text that moves over it, and the decoder of the values in it.

[ {…}, {…},        the window knows the line and column of every place in it; what lies behind the place is
  {…} ]            forgotten, so memory holds one window and its rows, however long the file is
"""

from __future__ import annotations

import json
import re
from typing import IO, Any

from weitune.data.conversation import Origin
from weitune.data.problems import Problem, data_problem
from weitune.data.read.depth import DEEPEST, too_deep

_WINDOW = 1 << 18
_LONGEST_ATOM = 12
"""Characters of the longest piece of JSON besides texts and numbers: an escaped surrogate pair."""
_SPACE = re.compile(r"[ \t\r\n]*")
_BLANK = re.compile(r"[\s\ufeff]*")
_BLANK_IN_LINE = re.compile(r"(?:[^\S\n]|\ufeff)*")
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")
_LINES_END = re.compile(r"[ \t\r]*\n\s*")


class Decoder:
    """The C scanner of the standard library, which also notices a key that an object has twice."""

    def __init__(self) -> None:
        """Begin with nothing decoded."""
        self.repeated: list[str] = []
        """Keys that an object of the value decoded last has twice."""
        self._decode = json.JSONDecoder(object_pairs_hook=self._object).raw_decode

    def decode(self, text: str, at: int) -> tuple[Any, int]:
        """Return the value at ``at`` and where it ends.

        Raises JSONDecodeError, or ValueError for a number of thousands of digits, or RecursionError if the value is
        nested too deeply.
        """
        self.repeated.clear()
        value, end = self._decode(text, at)
        if end - at > 2 * DEEPEST and too_deep(value):
            raise RecursionError
        return value, end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            self.repeated += sorted({key for key in keys if keys.count(key) > 1})
        return value

    def problems(self, origin: Origin) -> tuple[Problem, ...]:
        """Return what is wrong with the value that was decoded last."""
        return tuple(repeated_key(key).at(origin) for key in self.repeated) if self.repeated else ()


def repeated_key(key: str) -> Problem:
    """Return the fault of an object that has ``key`` twice."""
    return data_problem("data.json_window.repeated_key", field=key, key=key)


def after_space(text: str, at: int) -> int:
    """Return the first place from ``at`` on that is no white space of JSON."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


class Window:
    """A piece of the file's text that moves forward; ``at`` is the place in it, ``line`` the place's line, from 1."""

    def __init__(self, stream: IO[str]) -> None:
        """Read the first piece of ``stream``."""
        self._stream = stream
        self.text = ""
        self.at = 0
        self.line = 1
        self._column = 1
        self._whole = False
        self.more()

    @property
    def ended(self) -> bool:
        """Whether the place is the end of the file."""
        return self.at >= len(self.text) and not self.more()

    def peek(self) -> str:
        """Return the character at the place, or nothing at the end of the file."""
        return "" if self.ended else self.text[self.at]

    def more(self) -> bool:
        """Forget what lies behind and read as much again as lies ahead, at least a window; tell if there was any."""
        block = "" if self._whole else self._stream.read(max(_WINDOW, len(self.text) - self.at))
        if not block:
            self._whole = True
            return False
        self._column = self.place(self.at)[1]
        self.text = self.text[self.at :] + block
        self.at = 0
        return True

    def move(self, at: int) -> None:
        """Go forward to ``at``."""
        self.line += self.text.count("\n", self.at, at)
        self.at = at

    def place(self, at: int) -> tuple[int, int]:
        """Return line and column of ``at``, which is not behind the place."""
        newline = self.text.rfind("\n", 0, at)
        column = at - newline if newline >= 0 else self._column + at
        return self.line + self.text.count("\n", self.at, at), column

    def pass_comma(self) -> bool:
        """Go past a comma and the white space around it, to the next value; tell whether there was a comma."""
        match = _COMMA.match(self.text, self.at)
        if match is not None and match.end() < len(self.text):  # nearly always
            self.move(match.end())
            return True
        self.skip_space()
        if self.peek() != ",":
            return False
        self.move(self.at + 1)
        self.skip_space()
        return True

    def skip_space(self) -> None:
        """Go past white space as JSON has it."""
        self._skip(_SPACE)

    def skip_blank(self) -> bool:
        """Go past white space of any kind and byte order marks; tell whether anything is left of the file."""
        self._skip(_BLANK)
        return not self.ended

    def skip_blank_in_line(self) -> None:
        """Go past white space and byte order marks, but not past the end of the line."""
        self._skip(_BLANK_IN_LINE)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        while True:
            match = pattern.match(self.text, self.at)
            if match is not None:
                self.move(match.end())
            if self.at < len(self.text) or not self.more():
                return

    def line_end(self, most: int) -> tuple[int, str] | None:
        """Return where the line of the place ends, and what begins the next line that is not blank.

        That is a space if it is indented, and nothing at the end of the file. None if there are more than about
        ``most`` characters to look at.
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
        """Go to the beginning of the next line, or to the end of the file."""
        while (end := self.text.find("\n", self.at)) < 0:
            self.move(len(self.text))
            if not self.more():
                return
        self.move(end + 1)


def whole_values(window: Window, decoder: Decoder) -> list[Any]:
    """Decode values that are followed by a comma and by more text in the window, and go past them and their commas.

    This is the fast way through an array; one value at a time, with everything that may be wrong, is the slow one. It
    stops before a value about which there is anything to say, and returns nothing if that is the first.
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

    They are what one value at a time gives if the array ends where it was made to end, and not before.
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
    """Decode objects that end with their line and are followed by more text, and go past them: (line, object).

    As :func:`whole_values`, for objects that stand on lines of their own.
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
            first = text.find("\n", at)  # far cheaper than to count in a long text
            line += text.count("\n", first, ends.end())
            at = ends.end()
    except (ValueError, RecursionError):
        pass
    window.at, window.line = at, line
    return values


def cut_off(error: Exception, window: Window) -> bool:
    """Tell whether a fault may come from the end of the window alone."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(window.text) - _LONGEST_ATOM
