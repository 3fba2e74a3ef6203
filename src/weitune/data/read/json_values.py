"""Arrays and lines of JSON, value by value, with what is wrong at a place.

[{…}, {…},        an array: its elements are rows
{…} {…}           a value at the top: a row; the next one may follow in its line
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from typing import Any

from weitune.data.conversation import Origin
from weitune.data.problems import Problem, data_problem
from weitune.data.read.json_window import Decoder, Window, cut_off, whole_lines, whole_values
from weitune.data.read.rows import RawRow
from weitune.messages import say

LOOKAHEAD = 1 << 20
"""Characters of a value that are looked at before it is read as it comes."""
_SHOWN = 15
"""Characters of a file that a message repeats."""
LINE_CURE = "Fix the text at that place."
REST_CURE = f"{LINE_CURE} The rows after it could not be read."

Rows = Generator[RawRow | Problem, None, bool]
"""Yields rows and faults, and returns whether reading can go on behind them."""


class TooLong(Exception):  # noqa: N818  (an answer, not a fault)
    """The value is longer than was asked for."""


class Place:
    """The place in a file, and what is wrong there."""

    def __init__(self, window: Window, file: str) -> None:
        """Stand at the beginning of the text in ``window``."""
        self.window, self.file = window, file
        self.decoder = Decoder()
        self.row = 0

    def decode(self, most: int | None = None) -> tuple[Any, int] | Exception:
        """Decode the value at the place, reading on while it is cut off by the window's end.

        Returns the value and where it ends, or what is wrong; TooLong if it has more than ``most`` characters.
        """
        window = self.window
        while True:
            try:
                value, end = self.decoder.decode(window.text, window.at)
            except (ValueError, RecursionError) as error:
                if not cut_off(error, window):
                    return error
                if most is not None and len(window.text) - window.at > most:
                    return TooLong()
                if not window.more():
                    return error
                continue
            if end < len(window.text) or not window.more():  # a number may go on beyond the window
                return value, end

    def malformed(self, error: Exception, fix: str) -> Problem:
        """Return the fault of the value at the place."""
        window = self.window
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
            found = say("data.json_values.object_nested_too_deeply")
        else:
            found = str(error)
        return data_problem(
            "data.json_values.not_valid_json", file=self.file, line=line, column=column, found=found, fix=fix
        )

    def unexpected(self, expected: str, row: int, *, rest: bool) -> Problem:
        """Return the fault of what stands at the place instead of what is ``expected``."""
        window = self.window
        while len(window.text) - window.at < _SHOWN and window.more():
            pass
        line, column = window.place(window.at)
        found = repr(window.text[window.at : window.at + _SHOWN]) if not window.ended else "the end of the file"
        fix = REST_CURE if rest else LINE_CURE
        return data_problem(
            "data.json_values.not_valid_json_2",
            file=self.file,
            row=row,
            line=line,
            column=column,
            expected=expected,
            found=found,
            fix=fix,
        )

    def here(self, problem: Problem) -> Problem:
        """Return a problem of the file, standing at the place."""
        return replace(problem, file=self.file, line=self.window.line)


class Values(Place):
    """Reads arrays and lines."""

    def __init__(self, window: Window, file: str) -> None:
        """Begin with nothing read."""
        super().__init__(window, file)
        self.begun = False
        """Whether something has been read."""
        self.lines = False
        """Whether a value has stood alone on a line, so that the next line begins a value too."""

    def value(self) -> Rows:
        """Yield the value at the place as a row; only another row may follow it in its line."""
        window = self.window
        self.row += 1
        origin = Origin(self.file, self.row, window.line)
        outcome = self.decode()
        if isinstance(outcome, Exception):
            return (yield from self.faulty(outcome, origin))
        value, end = outcome
        problems = self.decoder.problems(origin)
        window.move(end)
        alone = window.line == origin.line
        window.skip_blank_in_line()
        after = window.peek()
        if after in {"", "\n", "{", "["}:
            self.lines = self.lines or (alone and after in {"", "\n"})
            yield RawRow(origin, value, problems)
        else:
            yield self.unexpected("the end of the line, or another row", self.row, rest=False)
            window.skip_line()
        return True

    def whole_lines(self) -> Rows:
        """Yield the objects from the place on that stand in the window, each on lines of its own; tell if there are."""
        rows = whole_lines(self.window, self.decoder)
        row = self.row
        for line, value in rows:
            row += 1
            yield RawRow(Origin(self.file, row, line), value)
        self.row = row
        return bool(rows)

    def faulty(self, error: Exception, origin: Origin) -> Rows:
        """Yield the fault of the value at the place, and go on with the next line if lines are rows."""
        window = self.window
        if self.begun and isinstance(error, json.JSONDecodeError) and error.pos == window.at:
            fault = self.unexpected("the end of the file, or another row", origin.row, rest=False)
        else:
            fault = self.malformed(error, LINE_CURE).at(origin)
        found = window.line_end(LOOKAHEAD)
        if found is None or not (self.lines or found[1] in {"", "{", "["}):
            yield replace(fault, fix=REST_CURE)
            return False
        end = found[0]
        if fault.line != window.line:  # the line alone is what is wrong
            line, column = window.place(end)
            near = window.text[max(window.at, end - _SHOWN) : end].strip()
            fault = replace(fault, found=f"the end of the line after {near!r}", line=line, column=column)
        yield fault
        window.move(end)
        return True

    def array(self) -> Rows:
        """Yield the elements of the array at the place."""
        window, decoder = self.window, self.decoder
        window.move(window.at + 1)
        begun = False
        while True:
            if not (begun and window.pass_comma()):
                window.skip_space()
                if window.peek() == "]":
                    window.move(window.at + 1)
                    return True
                if begun:
                    yield self.unexpected("a comma or the end of the array", self.row + 1, rest=not self.lines)
                    return self.resume(window.at)
            begun = True
            row = self.row
            for value in whole_values(window, decoder):
                row += 1
                yield RawRow(Origin(self.file, row), value)
            self.row = row + 1
            origin = Origin(self.file, self.row)
            outcome = self.decode()
            if isinstance(outcome, Exception):
                ahead = outcome.pos - window.at if isinstance(outcome, json.JSONDecodeError) else 0
                yield self.malformed(outcome, LINE_CURE if self.lines else REST_CURE).at(origin)
                return self.resume(window.at + ahead)
            value, end = outcome
            yield RawRow(origin, value, decoder.problems(origin))
            window.move(end)

    def resume(self, at: int) -> bool:
        """Go on behind a fault at ``at`` if lines are rows: at the line that begins there, or else at the next."""
        if not self.lines:
            return False
        self.window.move(at)
        if self.window.place(at)[1] != 1:
            self.window.skip_line()
        return True
