"""JSON files as a stream of rows: an array, one value a line, values one after the other, or files joined together.

    [{…}, {…}] {…}          everything at the top is read in order: the elements of an array are rows, an object is a
    {…}                     row, or holds rows (:mod:`.containers`); white space and byte order marks may stand between
    [{…}]

Every character that is not white space belongs to a row or to a fault, which is reported with line and column. A fault
in a line of JSON Lines costs that row; a fault in an array, or in an object of several lines, costs the rest of the
file, for nobody can tell where the next row begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import IO

from weitune.data.conversation import Origin
from weitune.data.formats.containers import Held, Shape, contents, missing_part, several
from weitune.data.problems import Problem
from weitune.data.read import json_values
from weitune.data.read.json_values import REST_CURE, Rows, TooLong, Values
from weitune.data.read.json_window import Window, after_space, repeated_key
from weitune.data.read.rows import Notes, RawRow

_OBJECTS = re.compile(r"\[[ \t\r\n]*\{")


def json_rows(
    stream: IO[str], file: str, part: str | None = None, shape: Shape | None = None, notes: Notes | None = None
) -> Iterator[RawRow | Problem]:
    """Return the rows of a JSON file, as they are read; ``part`` names the field of its object that has them."""
    return _Reader(Window(stream), file, part, shape or Shape(), notes or Notes()).rows()


class _Reader(Values):
    """Reads what stands at the top of a file, one after the other."""

    def __init__(self, window: Window, file: str, part: str | None, shape: Shape, notes: Notes) -> None:
        super().__init__(window, file)
        self._part, self._shape, self._notes = part, shape, notes
        self._holders = True
        """Whether objects may hold rows: until one was a row itself."""

    def rows(self) -> Iterator[RawRow | Problem]:
        going_on = True
        while going_on and self.window.skip_blank():
            first = self.window.peek()
            if self._part is not None and first != "{":
                yield self.here(missing_part(self._part, []))
                return
            if first == "[":
                going_on = yield from self.array()
            elif first == "{" and self._holders:
                going_on = yield from self._object()
            elif not (self.lines and (yield from self.whole_lines())):
                going_on = yield from self.value()
            self.begun = True

    def _object(self) -> Rows:
        """Yield the rows of the object at the place: itself, or those that it holds."""
        outcome = self.decode(json_values.LOOKAHEAD)
        if isinstance(outcome, TooLong):
            key = self._part if self._part is not None else self._long_list()
            if key is not None:
                return (yield from self._members(key, only=self._part is not None))
            outcome = self.decode()
        if isinstance(outcome, Exception):
            if self._part is None:
                return (yield from self.value())  # which says what is wrong
            return (yield from self.faulty(outcome, Origin(self.file, 1, self.window.line)))
        value, end = outcome
        held = contents(value, self._shape, self._part)
        if held is None:
            self._holders = False
            return (yield from self.value())
        if isinstance(held, Held) and held.key is not None:
            return (yield from self._members(held.key))
        yield from self._held(held)
        self.window.move(end)
        return True

    def _held(self, held: Held | Problem) -> Iterator[RawRow | Problem]:
        """Yield rows that were put together from an object, or why they cannot be."""
        if isinstance(held, Problem):
            yield self.here(held)
            return
        yield from (self.here(repeated_key(key)) for key in self.decoder.repeated)
        for value in held.rows:
            self.row += 1
            yield RawRow(Origin(self.file, self.row), value)
        self._notes.unused.update(held.unread)

    def _members(self, chosen: str, *, only: bool = True) -> Rows:
        """Yield the rows in the list ``chosen`` of the object at the place, as they come.

        Unless it is known to be the ``only`` one, another list of rows is a fault.
        """
        window = self.window
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
                yield self.here(repeated_key(key))
            seen.append(key)
            if key == chosen and window.peek() == "[":
                if not (yield from self.array()):
                    return False
            elif (fault := self._pass_over(key, others)) is not None:
                yield fault
                return False
        self._notes.unused.update(key for key in seen if key != chosen)
        if chosen not in seen or chosen in others:
            yield self.here(missing_part(chosen, others))
        elif others and not only:
            yield self.here(several([(key, None) for key in (chosen, *others)]))
        return True

    def _key(self, *, begun: bool) -> str | Problem | None:
        """Go to the next value of an object, and return its key; None at the object's end."""
        window = self.window
        row = self.row + 1
        window.skip_space()
        if window.peek() == "}":
            window.move(window.at + 1)
            return None
        if begun:
            if window.peek() != ",":
                return self.unexpected("a comma or the end of the object", row, rest=True)
            window.move(window.at + 1)
            window.skip_space()
        outcome = self.decode() if window.peek() == '"' else None
        if not isinstance(outcome, tuple):
            return self.unexpected("a key in double quotes", row, rest=True)
        window.move(outcome[1])
        window.skip_space()
        if window.peek() != ":":
            return self.unexpected("a colon after the key", row, rest=True)
        window.move(window.at + 1)
        window.skip_space()
        return str(outcome[0])

    def _pass_over(self, key: str, others: list[str]) -> Problem | None:
        """Go past a value that is not read, element by element; note in ``others`` one that may have rows."""
        row, window = self.row, self.window
        if window.peek() != "[":
            outcome = self.decode()
            if isinstance(outcome, Exception):
                return self.malformed(outcome, REST_CURE)
            holds = isinstance(outcome[0], dict) and contents(outcome[0], self._shape) is not None
            if holds or self._shape.decides(key):
                others.append(key)
            window.move(outcome[1])
            return None
        fault = None
        for item in self.array():
            if isinstance(item, Problem):
                fault = replace(item, row=None)
            elif item.origin.row == row + 1 and self._shape.holds_rows(key, [item.value]):
                others.append(key)
        self.row = row
        return fault

    def _long_list(self) -> str | None:
        """Return the key of the list of objects that makes the object at the place longer than is looked ahead.

        None if there is no such list, or if the object has a field that only a row has.
        """
        text, at, start = self.window.text, self.window.at + 1, 0
        seen: list[str] = []
        try:
            while True:
                key, at = self.decoder.decode(text, after_space(text, at))
                at = after_space(text, at)
                if not isinstance(key, str) or text[at] != ":":
                    return None
                seen.append(key)
                start = after_space(text, at + 1)
                at = after_space(text, self.decoder.decode(text, start)[1])
                if text[at] != ",":
                    return None
                at += 1
        except (ValueError, RecursionError, IndexError):
            if not seen or any(map(self._shape.decides, seen)) or not self._begins_rows(seen[-1], start):
                return None
            return seen[-1]

    def _begins_rows(self, key: str, at: int) -> bool:
        """Tell whether the list at ``at`` begins with a row, or under a usual name with an object."""
        match = _OBJECTS.match(self.window.text, at)
        if match is None:
            return False
        try:
            first = self.decoder.decode(self.window.text, match.end() - 1)[0]
        except (ValueError, RecursionError):
            first = {}  # too long to look at
        return self._shape.holds_rows(key, [first])
