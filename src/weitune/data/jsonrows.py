"""JSON files as a stream of rows: an array, one value a line, or values one after the other.

    [ {…}, {…},        a window of text moves over the file; the C scanner decodes what rows are whole in it,
      {…} ]            so memory holds one window and its rows, however long the array is

A fault in a line of JSON Lines costs that row; a fault in an array costs the rest of the file, for nobody can tell
where the next row begins. Either is reported with line and column.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from weitune.data.conversation import Origin
from weitune.data.problems import Problem
from weitune.data.rows import RawRow

_WINDOW = 1 << 18
_LONGEST_ATOM = 12
"""Characters of the longest piece of JSON besides texts and numbers: an escaped surrogate pair."""
_SHOWN = 20
_SPACE = re.compile(r"[ \t\r\n]*")
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")
_LINE_CURE = "Mend the text at that place; `python -m json.tool FILE` shows the same fault."
_ARRAY_CURE = f"{_LINE_CURE} The rows after it could not be read."


class _Decoder:
    """The C scanner of the standard library, which also notices a key that an object has twice."""

    def __init__(self) -> None:
        self.repeated: list[str] = []
        self._json = json.JSONDecoder(object_pairs_hook=self._object)

    def decode(self, text: str, at: int) -> tuple[Any, int]:
        self.repeated.clear()
        return self._json.raw_decode(text, at)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            self.repeated += sorted({key for key in keys if keys.count(key) > 1})
        return value

    def problems(self, origin: Origin) -> tuple[Problem, ...]:
        """Return what is wrong with the value that was decoded last."""
        if not self.repeated:
            return ()
        return tuple(
            Problem(
                "repeated key", "every key once", f"the key {key!r} twice", "Rename or remove one of them.", field=key
            ).at(origin)
            for key in self.repeated
        )


def json_rows(stream: IO[str], file: str) -> Iterator[RawRow | Problem]:
    """Yield the rows of a JSON file of any of the three shapes, told apart by its first characters."""
    window = _Window(stream)
    window.skip_space()
    if window.ended:
        return
    if window.text[window.at] == "[":
        yield from _array_rows(window, file)
    elif _is_lines(window):
        yield from line_rows(window.remaining_lines(), file, window.line)
    else:
        yield from _value_rows(window, file)


def line_rows(lines: Iterator[str], file: str, first_line: int = 1) -> Iterator[RawRow | Problem]:
    """Yield the rows of JSON Lines; blank lines are no rows."""
    decoder = _Decoder()
    row = 0
    for number, line in enumerate(lines, first_line):
        if not line or line.isspace():
            continue
        row += 1
        origin = Origin(file, row, number)
        try:
            value, end = decoder.decode(line, _after_space(line, 0))
            if (end := _after_space(line, end)) < len(line):
                raise json.JSONDecodeError("Extra data", line, end)
        except (ValueError, RecursionError) as error:
            column = error.pos + 1 if isinstance(error, json.JSONDecodeError) else None
            yield _malformed(error, _LINE_CURE, number, column).at(origin)
            continue
        yield RawRow(origin, value, decoder.problems(origin))


def _array_rows(window: _Window, file: str) -> Iterator[RawRow | Problem]:
    decoder = _Decoder()
    window.at += 1
    row = 0
    while True:
        if not (row and window.pass_comma()):
            window.skip_space()
            if window.peek() == "]":
                window.at += 1
                window.skip_space()
                if not window.ended:
                    yield _unexpected(window, "the end of the file after the array", file, row + 1)
                return
            if row:
                yield _unexpected(window, "a comma or the end of the array", file, row + 1)
                return
        if values := _many_values(window, decoder):
            for row, value in enumerate(values, row + 1):  # noqa: B020  (goes on counting)
                yield RawRow(Origin(file, row), value)
            continue
        row += 1
        yield (item := _next_value(window, decoder, file, row))
        if isinstance(item, Problem):
            return


def _many_values(window: _Window, decoder: _Decoder) -> list[Any]:
    """Decode the whole values that lie in the window at once, as far as they are objects in order, and go past them.

    A piece of an array that ends with an object is balanced only if it ends where a value of the array does. Returns
    nothing if there is anything to tell of one of them, or to wait for.
    """
    end = window.text.rfind("},", window.at) + 1
    if not end:
        return []
    try:
        values, _ = decoder.decode(f"[{window.text[window.at : end]}]", 0)
    except (ValueError, RecursionError):
        return []
    if decoder.repeated:
        return []
    window.at = end
    return values  # type: ignore[no-any-return]


def _value_rows(window: _Window, file: str) -> Iterator[RawRow | Problem]:
    decoder = _Decoder()
    row = 0
    while not window.ended:
        row += 1
        yield (item := _next_value(window, decoder, file, row))
        if isinstance(item, Problem):
            return
        window.skip_space()


def _next_value(window: _Window, decoder: _Decoder, file: str, row: int) -> RawRow | Problem:
    """Decode the value at the window's place, reading on while it is cut off by the window's end."""
    origin = Origin(file, row)
    while True:
        outcome = _attempt(window, decoder)
        if isinstance(outcome, Exception):
            if not (_cut_off(outcome, window) and window.more()):
                at = outcome.pos if isinstance(outcome, json.JSONDecodeError) else window.at
                return _malformed(outcome, _ARRAY_CURE, *window.place(at)).at(origin)
        elif outcome[1] < len(window.text) or not window.more():  # a number may go on beyond the window
            value, window.at = outcome
            return RawRow(origin, value, decoder.problems(origin))


def _attempt(window: _Window, decoder: _Decoder) -> tuple[Any, int] | Exception:
    try:
        return decoder.decode(window.text, window.at)
    except (ValueError, RecursionError) as error:
        return error


def _cut_off(error: Exception, window: _Window) -> bool:
    """Tell whether a fault may come from the end of the window alone."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(window.text) - _LONGEST_ATOM


def _malformed(error: Exception, cure: str, line: int, column: int | None) -> Problem:
    if isinstance(error, json.JSONDecodeError):
        near = error.doc[max(0, error.pos - 15) : error.pos + 15].strip()
        found = f"{error.msg[:1].lower()}{error.msg[1:]} near {near!r}" if near else "the end of the text"
    elif isinstance(error, RecursionError):
        found = "an object nested too deeply"
    else:
        found = str(error)
    return Problem("not valid JSON", "a JSON value", found, cure, line=line, column=column)


def _unexpected(window: _Window, expected: str, file: str, row: int) -> Problem:
    while len(window.text) - window.at < _SHOWN and window.more():
        pass
    line, column = window.place(window.at)
    found = repr(window.text[window.at : window.at + _SHOWN]) if not window.ended else "the end of the file"
    return Problem("not valid JSON", expected, found, _ARRAY_CURE, file, row, line, column)


def _is_lines(window: _Window) -> bool:
    """Tell whether the first line is a whole JSON value."""
    while (end := window.text.find("\n", window.at)) < 0 and window.more():
        pass
    line = window.text[window.at :] if end < 0 else window.text[window.at : end]
    try:
        json.loads(line)
    except ValueError:
        # A fault in the first of many lines: the second one, which begins a value too, gives the shape away.
        return end >= 0 and window.text[window.at] == "{" and window.text[end + 1 : end + 2] == "{"
    return True


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


class _Window:
    """A piece of the file's text that moves forward; knows the line and column of every place in it."""

    def __init__(self, stream: IO[str]) -> None:
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
        return "" if self.ended else self.text[self.at]

    def more(self) -> bool:
        """Forget what lies behind and read as much again as lies ahead, at least a window; tell if there was any."""
        block = "" if self._whole else self._stream.read(max(_WINDOW, len(self.text) - self.at))
        if not block:
            self._whole = True
            return False
        self.line, self._column = self.place(self.at)
        self.text = self.text[self.at :] + block
        self.at = 0
        return True

    def pass_comma(self) -> bool:
        """Go past a comma and the blanks around it, to the next value; tell whether there was a comma."""
        match = _COMMA.match(self.text, self.at)
        if match is not None and match.end() < len(self.text):  # nearly always
            self.at = match.end()
            return True
        self.skip_space()
        if self.peek() != ",":
            return False
        self.at += 1
        self.skip_space()
        return True

    def skip_space(self) -> None:
        self.at = _after_space(self.text, self.at)
        while self.at >= len(self.text) and self.more():
            self.at = _after_space(self.text, self.at)

    def place(self, at: int) -> tuple[int, int]:
        """Return line and column of a place in the window."""
        newlines = self.text.count("\n", 0, at)
        if not newlines:
            return self.line, self._column + at
        return self.line + newlines, at - self.text.rfind("\n", 0, at)

    def remaining_lines(self) -> Iterator[str]:
        """Yield the lines from here on."""
        while not self.ended:
            end = self.text.find("\n", self.at)
            if end < 0:
                if self.more():
                    continue
                end = len(self.text)
            line = self.text[self.at : end]
            self.at = min(end + 1, len(self.text))
            yield line
