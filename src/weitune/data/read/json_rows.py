"""Rows from JSON files: an array, one value per line, consecutive values, or such files joined together.

    [{…}, {…}] {…}          top-level values are read in order: the elements of an array are rows; an object is a row or
    {…}                     contains rows (:mod:`.containers`); white space and byte order marks may separate them
    [{…}]

Every character that is not white space belongs to a row or to a fault, which has a line and a column. A fault in JSON
Lines costs that row. A fault in an array, or in an object of several lines, costs the rest of the file, since nobody
can know where the next row begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import IO

from weitune.data.conversation import Origin
from weitune.data.formats.containers import ContainedRows, RowCriteria, contained_rows, missing_part, several_lists
from weitune.data.formats.fields import Notes
from weitune.data.problems import Problem
from weitune.data.read import json_values
from weitune.data.read.json_values import Rows, TooLong, ValueReader
from weitune.data.read.json_window import Window, after_space, repeated_key
from weitune.data.read.source import RawRow

_OBJECTS = re.compile(r"\[[ \t\r\n]*\{")


def json_rows(
    stream: IO[str], file: str, part: str | None = None, criteria: RowCriteria | None = None, notes: Notes | None = None
) -> Iterator[RawRow | Problem]:
    """Yield the rows of a JSON file; ``part`` is the field of its object that contains them."""
    return _FileReader(Window(stream), file, part, criteria or RowCriteria(), notes or Notes()).rows()


class _FileReader(ValueReader):
    def __init__(self, window: Window, file: str, part: str | None, criteria: RowCriteria, notes: Notes) -> None:
        super().__init__(window, file)
        self._part, self._criteria, self._notes = part, criteria, notes
        self._containers = True
        """Whether objects may contain rows: true until an object is a row itself."""

    def rows(self) -> Iterator[RawRow | Problem]:
        readable = True
        while readable and self.window.skip_blank():
            first = self.window.peek()
            if self._part is not None and first != "{":
                yield self.here(missing_part(self._part, []))
                return
            if first == "[":
                readable = yield from self.array()
            elif first == "{" and self._containers:
                readable = yield from self._object()
            elif not (self.lines and (yield from self.whole_lines())):
                readable = yield from self.value()
            self.begun = True

    def _object(self) -> Rows:
        """Yield the object at the position as a row, or the rows inside it."""
        outcome = self.decode(json_values.LOOKAHEAD)
        if isinstance(outcome, TooLong):
            key = self._part if self._part is not None else self._long_list()
            if key is not None:
                return (yield from self._members(key, only=self._part is not None))
            outcome = self.decode()
        if isinstance(outcome, Exception):
            if self._part is None:
                return (yield from self.value())  # yields the fault
            return (yield from self.faulty(outcome, Origin(self.file, 1, self.window.line)))
        value, end = outcome
        contained = contained_rows(value, self._criteria, self._part)
        if contained is None:
            self._containers = False
            return (yield from self.value())
        if isinstance(contained, ContainedRows) and contained.key is not None:
            return (yield from self._members(contained.key))
        yield from self._contained(contained)
        self.window.move(end)
        return True

    def _contained(self, contained: ContainedRows | Problem) -> Iterator[RawRow | Problem]:
        if isinstance(contained, Problem):
            yield self.here(contained)
            return
        yield from (self.here(repeated_key(key)) for key in self.decoder.repeated)
        for value in contained.rows:
            self.row += 1
            yield RawRow(Origin(self.file, self.row), value)
        self._notes.unused.update(contained.unread)

    def _members(self, chosen: str, *, only: bool = True) -> Rows:
        """Yield the rows in the list ``chosen`` of the object at the position, one by one.

        Another list of rows is a fault, unless ``chosen`` is known to be the ``only`` one.
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
            yield self.here(several_lists(dict.fromkeys((chosen, *others))))
        return True

    def _key(self, *, begun: bool) -> str | Problem | None:
        """Move to the next value of an object and return its key; None at the end of the object."""
        window = self.window
        row = self.row + 1
        window.skip_space()
        if window.peek() == "}":
            window.move(window.at + 1)
            return None
        if begun and not window.pass_comma():
            return self.unexpected(row, expected="data.json_rows.comma_or_object_end", rest_lost=True)
        outcome = self.decode() if window.peek() == '"' else None
        if not isinstance(outcome, tuple):
            return self.unexpected(row, expected="data.json_rows.key", rest_lost=True)
        window.move(outcome[1])
        window.skip_space()
        if window.peek() != ":":
            return self.unexpected(row, expected="data.json_rows.colon", rest_lost=True)
        window.move(window.at + 1)
        window.skip_space()
        return str(outcome[0])

    def _pass_over(self, key: str, others: list[str]) -> Problem | None:
        """Skip a value, an array element by element; add its key to ``others`` if it may contain rows."""
        row, window = self.row, self.window
        if window.peek() != "[":
            outcome = self.decode()
            if isinstance(outcome, Exception):
                return self.malformed(outcome, rest_lost=True)
            holds = isinstance(outcome[0], dict) and contained_rows(outcome[0], self._criteria) is not None
            if holds or self._criteria.decides(key):
                others.append(key)
            window.move(outcome[1])
            return None
        fault = None
        for item in self.array():
            if isinstance(item, Problem):
                fault = replace(item, row=None)
            elif item.origin.row == row + 1 and self._criteria.holds_rows(key, [item.value]):
                others.append(key)
        self.row = row
        return fault

    def _long_list(self) -> str | None:
        """Return the key of the list of objects that makes the object at the position longer than LOOKAHEAD.

        Returns None if there is no such list, or if the object has a field that only a row has.
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
            if not seen or any(map(self._criteria.decides, seen)) or not self._begins_rows(seen[-1], start):
                return None
            return seen[-1]

    def _begins_rows(self, key: str, at: int) -> bool:
        """Return whether the list at ``at`` begins with a row, or with an object if its ``key`` is usual for rows."""
        match = _OBJECTS.match(self.window.text, at)
        if match is None:
            return False
        try:
            first = self.decoder.decode(self.window.text, match.end() - 1)[0]
        except (ValueError, RecursionError):
            first = {}  # longer than the window
        return self._criteria.holds_rows(key, [first])
