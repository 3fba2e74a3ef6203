"""JSON files as a stream of rows: an array, one value a line, values one after the other, or files joined together.

    [{…}, {…}] {…}          everything at the top is read in order: the elements of an array are rows, an object is a
    {…}                     row, or holds rows (:mod:`.containers`); white space and byte order marks may stand between
    [{…}]

Every character that is not white space belongs to a row or to a fault, which is reported with line and column. A fault
in a line of JSON Lines costs that row; a fault in an array, or in an object of several lines, costs the rest of the
file, for nobody can tell where the next row begins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import IO, Any

from weitune.data.containers import Held, Shape, contents, missing_part, several
from weitune.data.conversation import Origin
from weitune.data.jsonwindow import Decoder, Window, after_space, cut_off, repeated_key, whole_lines, whole_values
from weitune.data.problems import Problem
from weitune.data.rows import Notes, RawRow

_LOOKAHEAD = 1 << 20
"""Characters of an object that are looked at to tell whether it is a row; a longer one is read as it comes."""
_SHOWN = 15
"""Characters of a file that a message repeats."""
_OBJECTS = re.compile(r"\[[ \t\r\n]*\{")
_LINE_CURE = "Fix the text at that place."
_REST_CURE = f"{_LINE_CURE} The rows after it could not be read."

Rows = Generator[RawRow | Problem, None, bool]
"""Yields rows and faults, and returns whether reading can go on behind them."""


def json_rows(
    stream: IO[str], file: str, part: str | None = None, shape: Shape | None = None, notes: Notes | None = None
) -> Iterator[RawRow | Problem]:
    """Return the rows of a JSON file, as they are read; ``part`` names the field of its object that has them."""
    return _Reader(Window(stream), file, part, shape or Shape(), notes or Notes()).rows()


class _TooLong(Exception):  # noqa: N818  (an answer, not a fault)
    """The value is longer than was asked for."""


class _Top:
    """The place in a file, and what is wrong there."""

    def __init__(self, window: Window, file: str) -> None:
        self._window, self._file = window, file
        self._decoder = Decoder()
        self._row = 0

    def _decode(self, most: int | None = None) -> tuple[Any, int] | Exception:
        """Decode the value at the place, reading on while it is cut off by the window's end.

        Returns the value and where it ends, or what is wrong; _TooLong if it has more than ``most`` characters.
        """
        window = self._window
        while True:
            try:
                value, end = self._decoder.decode(window.text, window.at)
            except (ValueError, RecursionError) as error:
                if not cut_off(error, window):
                    return error
                if most is not None and len(window.text) - window.at > most:
                    return _TooLong()
                if not window.more():
                    return error
                continue
            if end < len(window.text) or not window.more():  # a number may go on beyond the window
                return value, end

    def _malformed(self, error: Exception, cure: str) -> Problem:
        """Return the fault of the value at the place."""
        window = self._window
        line, column = window.place(window.at)
        if isinstance(error, json.JSONDecodeError):
            ahead = error.pos - window.at
            while len(window.text) - window.at < ahead + _SHOWN and window.more():
                pass
            at = window.at + ahead
            line, column = window.place(at)
            near = window.text[max(window.at, at - _SHOWN) : at + _SHOWN].strip()
            found = f"{error.msg[:1].lower()}{error.msg[1:]} near {near!r}" if near else "the end of the text"
        elif isinstance(error, RecursionError):
            found = "an object nested too deeply"
        else:
            found = str(error)
        return Problem("not valid JSON", "a JSON value", found, cure, self._file, line=line, column=column)

    def _unexpected(self, expected: str, row: int, *, rest: bool) -> Problem:
        """Return the fault of what stands at the place instead of what is ``expected``."""
        window = self._window
        while len(window.text) - window.at < _SHOWN and window.more():
            pass
        line, column = window.place(window.at)
        found = repr(window.text[window.at : window.at + _SHOWN]) if not window.ended else "the end of the file"
        cure = _REST_CURE if rest else _LINE_CURE
        return Problem("not valid JSON", expected, found, cure, self._file, row, line, column)

    def _here(self, problem: Problem) -> Problem:
        """Return a problem of the file, standing at the place."""
        return replace(problem, file=self._file, line=self._window.line)


class _Arrays(_Top):
    """Reads arrays and lines."""

    def __init__(self, window: Window, file: str) -> None:
        super().__init__(window, file)
        self._begun = False
        """Whether something has been read."""
        self._lines = False
        """Whether a value has stood alone on a line, so that the next line begins a value too."""

    def _value(self) -> Rows:
        """Yield the value at the place as a row; only another row may follow it in its line."""
        window = self._window
        self._row += 1
        origin = Origin(self._file, self._row, window.line)
        outcome = self._decode()
        if isinstance(outcome, Exception):
            return (yield from self._faulty(outcome, origin))
        value, end = outcome
        problems = self._decoder.problems(origin)
        window.move(end)
        alone = window.line == origin.line
        window.skip_blank_in_line()
        after = window.peek()
        if after in {"", "\n", "{", "["}:
            self._lines = self._lines or (alone and after in {"", "\n"})
            yield RawRow(origin, value, problems)
        else:
            yield self._unexpected("the end of the line, or another row", self._row, rest=False)
            window.skip_line()
        return True

    def _whole_lines(self) -> Rows:
        """Yield the objects from the place on that stand in the window, each on lines of its own; tell if there are."""
        rows = whole_lines(self._window, self._decoder)
        row = self._row
        for line, value in rows:
            row += 1
            yield RawRow(Origin(self._file, row, line), value)
        self._row = row
        return bool(rows)

    def _faulty(self, error: Exception, origin: Origin) -> Rows:
        """Yield the fault of the value at the place, and go on with the next line if lines are rows."""
        window = self._window
        if self._begun and isinstance(error, json.JSONDecodeError) and error.pos == window.at:
            fault = self._unexpected("the end of the file, or another row", origin.row, rest=False)
        else:
            fault = self._malformed(error, _LINE_CURE).at(origin)
        found = window.line_end(_LOOKAHEAD)
        if found is None or not (self._lines or found[1] in {"", "{", "["}):
            yield replace(fault, cure=_REST_CURE)
            return False
        end = found[0]
        if fault.line != window.line:  # the line alone is what is wrong
            line, column = window.place(end)
            near = window.text[max(window.at, end - _SHOWN) : end].strip()
            fault = replace(fault, found=f"the end of the line after {near!r}", line=line, column=column)
        yield fault
        window.move(end)
        return True

    def _array(self) -> Rows:
        """Yield the elements of the array at the place."""
        window, decoder = self._window, self._decoder
        window.move(window.at + 1)
        begun = False
        while True:
            if not (begun and window.pass_comma()):
                window.skip_space()
                if window.peek() == "]":
                    window.move(window.at + 1)
                    return True
                if begun:
                    yield self._unexpected("a comma or the end of the array", self._row + 1, rest=not self._lines)
                    return self._resume(window.at)
            begun = True
            row = self._row
            for value in whole_values(window, decoder):
                row += 1
                yield RawRow(Origin(self._file, row), value)
            self._row = row + 1
            origin = Origin(self._file, self._row)
            outcome = self._decode()
            if isinstance(outcome, Exception):
                ahead = outcome.pos - window.at if isinstance(outcome, json.JSONDecodeError) else 0
                yield self._malformed(outcome, _LINE_CURE if self._lines else _REST_CURE).at(origin)
                return self._resume(window.at + ahead)
            value, end = outcome
            yield RawRow(origin, value, decoder.problems(origin))
            window.move(end)

    def _resume(self, at: int) -> bool:
        """Go on behind a fault at ``at`` if lines are rows: at the line that begins there, or else at the next."""
        if not self._lines:
            return False
        self._window.move(at)
        if self._window.place(at)[1] != 1:
            self._window.skip_line()
        return True


class _Reader(_Arrays):
    """Reads what stands at the top of a file, one after the other."""

    def __init__(self, window: Window, file: str, part: str | None, shape: Shape, notes: Notes) -> None:
        super().__init__(window, file)
        self._part, self._shape, self._notes = part, shape, notes
        self._holders = True
        """Whether objects may hold rows: until one was a row itself."""

    def rows(self) -> Iterator[RawRow | Problem]:
        going_on = True
        while going_on and self._window.skip_blank():
            first = self._window.peek()
            if self._part is not None and first != "{":
                yield self._here(missing_part(self._part, []))
                return
            if first == "[":
                going_on = yield from self._array()
            elif first == "{" and self._holders:
                going_on = yield from self._object()
            elif not (self._lines and (yield from self._whole_lines())):
                going_on = yield from self._value()
            self._begun = True

    def _object(self) -> Rows:
        """Yield the rows of the object at the place: itself, or those that it holds."""
        outcome = self._decode(_LOOKAHEAD)
        if isinstance(outcome, _TooLong):
            key = self._part if self._part is not None else self._long_list()
            if key is not None:
                return (yield from self._members(key, only=self._part is not None))
            outcome = self._decode()
        if isinstance(outcome, Exception):
            if self._part is None:
                return (yield from self._value())  # which says what is wrong
            return (yield from self._faulty(outcome, Origin(self._file, 1, self._window.line)))
        value, end = outcome
        held = contents(value, self._shape, self._part)
        if held is None:
            self._holders = False
            return (yield from self._value())
        if isinstance(held, Held) and held.key is not None:
            return (yield from self._members(held.key))
        yield from self._held(held)
        self._window.move(end)
        return True

    def _held(self, held: Held | Problem) -> Iterator[RawRow | Problem]:
        """Yield rows that were put together from an object, or why they cannot be."""
        if isinstance(held, Problem):
            yield self._here(held)
            return
        yield from (self._here(repeated_key(key)) for key in self._decoder.repeated)
        for value in held.rows:
            self._row += 1
            yield RawRow(Origin(self._file, self._row), value)
        self._notes.unused.update(held.unread)

    def _members(self, chosen: str, *, only: bool = True) -> Rows:
        """Yield the rows in the list ``chosen`` of the object at the place, as they come.

        Unless it is known to be the ``only`` one, another list of rows is a fault.
        """
        window = self._window
        window.move(window.at + 1)
        seen: list[str] = []
        others: list[str] = []
        while True:
            key = self._key(begun=bool(seen))
            if isinstance(key, Problem):
                yield key
                return False
            if key is None:
                break
            if key in seen:
                yield self._here(repeated_key(key))
            seen.append(key)
            if key == chosen and window.peek() == "[":
                if not (yield from self._array()):
                    return False
            elif (fault := self._pass_over(key, others)) is not None:
                yield fault
                return False
        self._notes.unused.update(key for key in seen if key != chosen)
        if chosen not in seen or chosen in others:
            yield self._here(missing_part(chosen, others))
        elif others and not only:
            yield self._here(several([(key, None) for key in (chosen, *others)]))
        return True

    def _key(self, *, begun: bool) -> str | Problem | None:
        """Go to the next value of an object, and return its key; None at the object's end."""
        window = self._window
        row = self._row + 1
        window.skip_space()
        if window.peek() == "}":
            window.move(window.at + 1)
            return None
        if begun:
            if window.peek() != ",":
                return self._unexpected("a comma or the end of the object", row, rest=True)
            window.move(window.at + 1)
            window.skip_space()
        outcome = self._decode() if window.peek() == '"' else None
        if not isinstance(outcome, tuple):
            return self._unexpected("a key in double quotes", row, rest=True)
        window.move(outcome[1])
        window.skip_space()
        if window.peek() != ":":
            return self._unexpected("a colon after the key", row, rest=True)
        window.move(window.at + 1)
        window.skip_space()
        return str(outcome[0])

    def _pass_over(self, key: str, others: list[str]) -> Problem | None:
        """Go past a value that is not read, element by element; note in ``others`` one that may have rows."""
        row, window = self._row, self._window
        if window.peek() != "[":
            outcome = self._decode()
            if isinstance(outcome, Exception):
                return self._malformed(outcome, _REST_CURE)
            holds = isinstance(outcome[0], dict) and contents(outcome[0], self._shape) is not None
            if holds or self._shape.decides(key):
                others.append(key)
            window.move(outcome[1])
            return None
        fault = None
        for item in self._array():
            if isinstance(item, Problem):
                fault = item
            elif item.origin.row == row + 1 and self._shape.holds_rows(key, [item.value]):
                others.append(key)
        self._row = row
        return fault

    def _long_list(self) -> str | None:
        """Return the key of the list of objects that makes the object at the place longer than is looked ahead.

        None if there is no such list, or if the object has a field that only a row has.
        """
        text, at, start = self._window.text, self._window.at + 1, 0
        seen: list[str] = []
        try:
            while True:
                key, at = self._decoder.decode(text, after_space(text, at))
                at = after_space(text, at)
                if not isinstance(key, str) or text[at] != ":":
                    return None
                seen.append(key)
                start = after_space(text, at + 1)
                at = after_space(text, self._decoder.decode(text, start)[1])
                if text[at] != ",":
                    return None
                at += 1
        except (ValueError, RecursionError, IndexError):
            if not seen or any(map(self._shape.decides, seen)) or not self._begins_rows(seen[-1], start):
                return None
            return seen[-1]

    def _begins_rows(self, key: str, at: int) -> bool:
        """Tell whether the list at ``at`` begins with a row, or under a usual name with an object."""
        match = _OBJECTS.match(self._window.text, at)
        if match is None:
            return False
        try:
            first = self._decoder.decode(self._window.text, match.end() - 1)[0]
        except (ValueError, RecursionError):
            first = {}  # too long to look at
        return self._shape.holds_rows(key, [first])
