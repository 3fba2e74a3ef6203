"""A help page in Chinese: its lines break between characters, each of which is two columns wide."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import click

from weitune.messages import catalogue
from weitune.messages.language import language

_UNIT = re.compile(r"\s+|[!-~]+|.")
"""What a line can end after: a word of Latin letters, or one other character."""
_NOT_FIRST = "，。、；：？！）》」』”’…·%"
_NOT_LAST = "（《「『“‘"
_EXTRA = re.compile(r"  \[([^\[\]]*)\]$")


class ChineseHelp(click.HelpFormatter):
    """Writes click's help page in Chinese."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, _word("Usage:") if prefix is None else prefix)

    def write_heading(self, heading: str) -> None:
        self.write(f"{' ' * self.current_indent}{_word(heading)}：\n")

    def write_text(self, text: str) -> None:
        """Write paragraphs; one that begins with a backspace keeps its lines."""
        indent = " " * self.current_indent
        for paragraph in text.split("\n\n"):
            if paragraph.startswith("\b"):
                lines = paragraph.split("\n")[1:]
            else:
                lines = wrapped(" ".join(paragraph.split()), self.width - self.current_indent)
            self.write("".join(f"{indent}{line}".rstrip() + "\n" for line in (*lines, "")) if lines else "")
        self.buffer[-1:] = [self.buffer[-1].rstrip() + "\n"] if self.buffer else []

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write a list of options or commands, each with its help beside it."""
        rows = list(rows)
        first = min(max((columns(name) for name, _ in rows), default=0), col_max) + col_spacing
        indent = " " * (self.current_indent + first)
        for name, text in rows:
            lines = wrapped(_told(text), max(self.width - len(indent), 20)) or [""]
            head = " " * self.current_indent + name
            if columns(name) > first - col_spacing:
                self.write(f"{head}\n{indent}{lines[0]}\n")
            else:
                self.write(f"{head}{' ' * (first - columns(name))}{lines[0]}\n")
            self.write("".join(f"{indent}{line}\n" for line in lines[1:]))


def columns(text: str) -> int:
    """Return the width of ``text`` in a terminal."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def wrapped(text: str, width: int) -> list[str]:
    """Break ``text`` into lines of at most ``width`` columns; no line begins with a closing mark."""
    lines, line = [], ""
    for unit in _UNIT.findall(text):
        if line and columns(line + unit.rstrip()) > width and unit[0] not in _NOT_FIRST:
            rest = line[-1] if line[-1] in _NOT_LAST else ""
            lines.append(line[: len(line) - len(rest)].rstrip())
            line = rest
        line += unit if line or not unit.isspace() else ""
    return [*lines, line.rstrip()] if line.strip() else lines


def _told(text: str) -> str:
    """Return the help of one row, with what click adds to it in Chinese."""
    text = _word(text)
    added = _EXTRA.search(text)
    if added is None:
        return text
    words = {name: _word(name) for name in ("required", "default: ", "env var: ")}
    inside = re.sub("|".join(map(re.escape, words)), lambda found: words[found[0]], added[1])
    return f"{text[: added.start()]}  [{inside}]"


def _word(text: str) -> str:
    return str(catalogue("click", language()).get(text, text))
