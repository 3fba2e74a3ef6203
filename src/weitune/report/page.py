"""The HTML of pages: self-contained, light and dark, for a wide screen, a phone and paper.

Every string from data, a recipe or a model goes through :func:`text`. A page's content security policy allows its own
style sheet and its own scripts, each by its hash, and nothing else, from inside or from outside.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from hashlib import sha256
from html import escape
from importlib import resources
from importlib.metadata import version
from typing import Literal

from weitune.messages import say
from weitune.messages.language import language
from weitune.report.languages import language_of

State = Literal["", "good", "bad", "open"]
"""What a colour says about a fact; it always stands in words, too."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: its text, a smaller note below it, and whether it is the best or a bad one of its row."""

    text: object
    note: str = ""
    kind: Literal["", "best", "bad"] = ""


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact for a tile."""

    name: str
    value: str
    note: str = ""
    state: State = ""


def text(value: object) -> str:
    """Return ``value`` as HTML text, without markup."""
    return escape(str(value), quote=True)


def prose(sentence: str) -> str:
    """Return a sentence as HTML, with what stands between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", text(sentence))


def page(title: str, lead: str, sections: Iterable[str], *, scripts: Sequence[str] = ()) -> str:
    """Return a whole page; ``sections`` are HTML already, ``scripts`` names of files of this package."""
    style, codes = _resource("page.css"), [_resource(name) for name in scripts]
    made = say("report.page.made", version=version("weitune"), date=f"{datetime.now().astimezone():%Y-%m-%d %H:%M}")
    return (
        f'<!doctype html>\n<html lang="{language()}"><head><meta charset="utf-8"><title>{text(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, codes)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{style}</style></head>\n<body>\n"
        f'<header><span class="wordmark">wei<i>tune</i></span><small>{text(made)}</small></header>\n'
        f'<main>\n<h1>{text(title)}</h1>\n<p class="lead">{text(lead)}</p>\n{"".join(sections)}</main>\n'
        f"{''.join(f'<script>{each}</script>' for each in codes)}</body></html>\n"
    )


def section(title: str, *parts: str, anchor: str = "") -> str:
    """Return a section of the page, to which ``#anchor`` leads, or nothing if it has no content."""
    content = "".join(parts)
    place = f' id="{anchor}"' if anchor else ""
    return f"<section{place}><h2>{text(title)}</h2>\n{content}</section>\n" if content else ""


def tiles(facts: Iterable[Fact]) -> str:
    """Return facts in tiles."""
    return f'<div class="tiles">{"".join(map(_tile, facts))}</div>\n'


def _tile(fact: Fact) -> str:
    note = f"<small>{text(fact.note)}</small>" if fact.note else ""
    kind = f"tile {fact.state}".rstrip()
    return f'<div class="{kind}"><small>{text(fact.name)}</small><b>{text(fact.value)}</b>{note}</div>'


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: bool = False,
    said: bool = False,
    caption: str = "",
    facts: bool = False,
    measures: bool = False,
) -> str:
    """Return a table that scrolls by itself.

    ``numbers``: all columns but the first; ``said``: cells hold what people or models said; ``facts``: names and
    counts; ``measures``: figures of models, which stand below the name of a measure on a phone. Cells may be of the
    class :class:`Cell`.
    """
    rows = list(rows)
    if not rows:
        return ""
    labels = [f' data-h="{text(head)}"' for head in heads] or [""] * len(rows[0])  # heads of cells, on a phone
    kind = "said" if said and heads else "said steps" if said else "facts" if facts else ""
    kind = kind or ("measures" if measures else "")
    body = "".join(
        "<tr>"
        + "".join(
            _cell(cell, number=numbers and k > 0, said=said, label=label if said or (measures and k) else "")
            for k, (label, cell) in enumerate(zip(labels, cells, strict=True))
        )
        + "</tr>"
        for cells in rows
    )
    name = text(caption or say("report.page.table"))
    hint = "" if said else f'<span class="hint">{text(say("report.page.scroll"))}</span>'
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="{name}">{hint}'
        f"<table{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>"
        f"{f'<caption>{name}</caption>' if caption else ''}{_head(heads, numbers=numbers)}"
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _head(heads: Sequence[str], *, numbers: bool) -> str:
    def head(k: int, name: str) -> str:
        kind = ' class="n"' if numbers and k else ""
        return f'<th scope="col"{kind}>{text(name)}</th>' if name else "<td></td>"

    return f"<thead><tr>{''.join(head(k, name) for k, name in enumerate(heads))}</tr></thead>" if heads else ""


def _cell(cell: object, *, number: bool, said: bool, label: str) -> str:
    marked = cell if isinstance(cell, Cell) else Cell(cell)
    kinds = " ".join(filter(None, ("n" if number else "", marked.kind)))
    kind = f' class="{kinds}"' if kinds else ""
    shown = text(marked.text)
    if isinstance(cell, Cell):
        shown = f"<b>{shown}</b>" + (f"<small>{text(cell.note)}</small>" if cell.note else "")
    return f"<td{kind}{label}{lang(marked.text) if said else ''}>{shown}</td>"


def lang(value: object) -> str:
    """Return the attribute that names the language of a text where it is not the page's."""
    found = language_of(str(value))
    return f' lang="{found}"' if found not in {None, language()} else ""


def folded(title: str, content: str) -> str:
    """Return content that is folded until one clicks on ``title``."""
    return f"<details><summary>{text(title)}</summary>{content}</details>\n" if content else ""


def code(lines: str, *, wrapped: bool = False) -> str:
    """Return a block of code or of plain text."""
    return f"<pre{' class=' + chr(34) + 'text' + chr(34) if wrapped else ''}>{text(lines)}</pre>\n"


COPY = "copy.js"
"""The script of the buttons of :func:`commands`; without it, they are hidden and a click selects the command."""


def commands(lines: Iterable[str]) -> str:
    """Return commands, each with a button that copies it; the page needs the script :data:`COPY`."""
    copy, done = text(say("report.page.copy")), text(say("report.page.copied"))
    return "".join(
        f'<div class="command"><pre>{text(line)}</pre>'
        f'<button type="button" class="copy" data-done="{done}" hidden>{copy}</button></div>\n'
        for line in lines
    )


@cache
def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _policy(style: str, scripts: Sequence[str]) -> str:
    def hashes(codes: Iterable[str]) -> str:
        return " ".join(f"'sha256-{b64encode(sha256(each.encode()).digest()).decode()}'" for each in codes) or "'none'"

    return (
        f"default-src 'none'; style-src {hashes([style])}; script-src {hashes(scripts)}; "
        "base-uri 'none'; form-action 'none'"
    )
