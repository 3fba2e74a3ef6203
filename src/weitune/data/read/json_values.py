"""Rows from JSON arrays and lines, value by value, with the position of every fault.

[{…}, {…}]        an array: its elements are rows
{…} {…}           top-level values: each is a row; the next may follow on the same line
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from typing import Any

from weitune.data.conversation import Origin
from weitune.data.problems import Problem, data_problem
from weitune.data.read.json_window import Decoder, Window, cut_off, whole_lines, whole_values
from weitune.data.read.source import RawRow
from weitune.messages import say

LOOKAHEAD = 1 << 20
"""Characters of a value that are decoded at most to decide whether it is a row or contains rows."""
_SHOWN = 15
"""Characters of a file that a message quotes."""

Rows = Generator[RawRow | Problem, None, bool]
"""Yields rows and faults, and returns whether what follows them can be read."""


class TooLong(Exception):  # noqa: N818  (returned, never raised)
    """The value has more characters than allowed."""


class ValueReader:
    """Reads the rows of arrays and lines, from the current position of a file on."""

    def __init__(self, window: Window, file: str) -> None:
        self.window, self.file = window, file
        self.decoder = Decoder()
        self.row = 0
        self.begun = False
        """Whether a value has been read."""
        self.lines = False
        """Whether a value had its own line, so that each line begins a value."""

    def decode(self, most: int | None = None) -> tuple[Any, int] | Exception:
        """Return the value at the position and its end, or the error; TooLong if it has more than ``most`` characters.

        Reads on while the value exceeds the window.
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
            if end + 2 < len(window.text) or not window.more():  # a `1` at the end may begin `1.5` or `1e-5`
                return value, end

    def malformed(self, error: Exception, *, rest_lost: bool) -> Problem:
        window = self.window
        line, column = window.place(window.at)
        if isinstance(error, json.JSONDecodeError):
            ahead = error.pos - window.at
            while len(window.text) - window.at < ahead + _SHOWN and window.more():
                pass
            at = window.at + ahead
            line, column = window.place(at)
            near = window.text[max(window.at, at - _SHOWN) : at + _SHOWN].strip()
            reason = f"{error.msg[:1].lower()}{error.msg[1:]}"
            found = say("data.json_values.end_of_text")
            found = say("data.json_values.reason_near", reason=reason, near=near) if near else found
        elif isinstance(error, RecursionError):
            found = say("data.json_values.nested_too_deeply")
        else:
            found = str(error)
        problem = data_problem("data.json_values.not_valid_json", found=found, fix=_fix(rest_lost=rest_lost))
        return replace(problem, file=self.file, line=line, column=column)

    def unexpected(self, row: int, *, expected: str, rest_lost: bool) -> Problem:
        """Return the fault that the text at the position is not ``expected``, a message id."""
        window = self.window
        while len(window.text) - window.at < _SHOWN and window.more():
            pass
        line, column = window.place(window.at)
        found = say("data.json_values.end_of_file") if window.ended else repr(window.text[window.at :][:_SHOWN])
        fix = _fix(rest_lost=rest_lost)
        problem = data_problem("data.json_values.unexpected_text", expected=say(expected), found=found, fix=fix)
        return replace(problem, file=self.file, row=row, line=line, column=column)

    def here(self, problem: Problem) -> Problem:
        return replace(problem, file=self.file, line=self.window.line)

    def value(self) -> Rows:
        """Yield the value at the position as a row; nothing but another row may follow it on its line."""
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
            yield self.unexpected(self.row, expected="data.json_values.line_end_or_row", rest_lost=False)
            window.skip_line()
        return True

    def whole_lines(self) -> Rows:
        """Yield the objects that end in the window and share no line; return whether there were any."""
        rows = whole_lines(self.window, self.decoder)
        for row, (line, value) in enumerate(rows, self.row + 1):
            yield RawRow(Origin(self.file, row, line), value)
        self.row += len(rows)
        return bool(rows)

    def faulty(self, error: Exception, origin: Origin) -> Rows:
        """Yield the fault of the value at the position, and continue with the next line if lines are rows."""
        window = self.window
        if self.begun and isinstance(error, json.JSONDecodeError) and error.pos == window.at:
            fault = self.unexpected(origin.row, expected="data.json_values.file_end_or_row", rest_lost=False)
        else:
            fault = self.malformed(error, rest_lost=False).at(origin)
        line_end = window.line_end(LOOKAHEAD)
        if line_end is None or not (self.lines or line_end[1] in {"", "{", "["}):
            yield replace(fault, fix=_fix(rest_lost=True))
            return False
        end = line_end[0]
        if fault.line != window.line:  # the next lines are rows, so the fault is that this one ends
            line, column = window.place(end)
            near = window.text[max(window.at, end - _SHOWN) : end].strip()
            fault = replace(fault, found=say("data.json_values.line_end_after", near=near), line=line, column=column)
        yield fault
        window.move(end)
        return True

    def array(self) -> Rows:
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
                    expected = "data.json_values.comma_or_array_end"
                    yield self.unexpected(self.row + 1, expected=expected, rest_lost=not self.lines)
                    return self.resume(window.at)
            begun = True
            values = whole_values(window, decoder)
            for row, value in enumerate(values, self.row + 1):
                yield RawRow(Origin(self.file, row), value)
            self.row += len(values) + 1
            origin = Origin(self.file, self.row)
            outcome = self.decode()
            if isinstance(outcome, Exception):
                ahead = outcome.pos - window.at if isinstance(outcome, json.JSONDecodeError) else 0
                yield self.malformed(outcome, rest_lost=not self.lines).at(origin)
                return self.resume(window.at + ahead)
            value, end = outcome
            yield RawRow(origin, value, decoder.problems(origin))
            window.move(end)

    def resume(self, at: int) -> bool:
        """Move to the next beginning of a line from ``at`` on if lines are rows; return whether they are."""
        if not self.lines:
            return False
        self.window.move(at)
        if self.window.place(at)[1] != 1:
            self.window.skip_line()
        return True


def _fix(*, rest_lost: bool) -> str:
    return say("data.json_values.fix_here_rest_lost" if rest_lost else "data.json_values.fix_here")
