"""The HTML of pages: self-contained, in two languages, light and dark, for a wide screen, a phone and paper.

Every string from data, a recipe or a model goes through :func:`.text`. A page's content security policy allows its own
style sheet and its own scripts, each by its hash, and nothing else, from inside or from outside.

Radio buttons choose the language, without a script; language.js presses the reader's at first.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, wraps
from hashlib import sha256
from html import escape
from importlib import resources
from importlib.metadata import version
from typing import Literal, ParamSpec

from weitune.messages import in_english, say
from weitune.messages.language import Language, language
from weitune.report.markup import attributes, both_languages, lang, text

State = Literal["", "good", "bad", "open"]
"""What a colour says about a fact; it always stands in words, too."""

P = ParamSpec("P")
_LANGUAGES: dict[Language, str] = {"en": "English", "zh": "中文"}


@dataclass(frozen=True, slots=True)
class Content:
    """What a page has: HTML, but for its title and the line below it."""

    title: str
    lead: str
    sections: Iterable[str]
    scripts: Sequence[str] = ()
    """Names of files of this package."""


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


def page(write: Callable[P, Content]) -> Callable[P, str]:
    """Decorate a function that returns what a page has: it then returns the whole page, in both languages.

    The one shown at first is the reader's, or without a script that of whoever makes the page.
    """

    @wraps(write)
    def whole(*args: P.args, **kwargs: P.kwargs) -> str:
        shown = language()
        with both_languages():
            return _html(write(*args, **kwargs), shown)

    return whole


def _html(content: Content, shown: Language) -> str:
    style, codes = _resource("page.css"), [_resource(name) for name in ("language.js", *content.scripts)]
    title = content.title if shown == "zh" else in_english(content.title)
    made = f"{version('weitune')} · {datetime.now().astimezone():%Y-%m-%d %H:%M}"
    return (
        f'<!doctype html>\n<html lang="{shown}"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, codes)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{style}</style></head>\n<body>\n"
        f'<header><span class="wordmark">wei<i>tune</i></span><small>{made}</small>{_choice(shown)}</header>\n'
        f'<main>\n<h1>{text(content.title)}</h1>\n<p class="lead">{text(content.lead)}</p>\n'
        f"{''.join(content.sections)}</main>\n"
        f"{''.join(f'<script>{each}</script>' for each in codes)}</body></html>\n"
    )


def _choice(shown: Language) -> str:
    """Return a radio button for each language."""
    buttons = "".join(
        f'<input type="radio" name="language" id="read-{name}" value="{name}" autocomplete="off"'
        f'{" checked" if name == shown else ""}><label for="read-{name}" lang="{name}">{called}</label>'
        for name, called in _LANGUAGES.items()
    )
    return f'<fieldset><legend class="unseen">{text(say("report.page.language"))}</legend>{buttons}</fieldset>'


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

    ``numbers``: all columns but the first; ``said``: cells hold what people or models said, and break where they must;
    ``facts``: names and counts; ``measures``: figures of models, which stand below the name of a measure on a phone.
    Cells may be of the class :class:`Cell`.
    """
    rows = list(rows)
    if not rows:
        return ""
    labels = [attributes("data-h", head) for head in heads] or [""] * len(rows[0])  # heads of cells, on a phone
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
    inner = f"{_head(heads, numbers=numbers)}<tbody>{body}</tbody></table>"
    opened = f"<table{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>"
    return f"{opened}{inner}\n" if said else _scrolling(opened, inner, caption)


def _scrolling(opened: str, inner: str, caption: str) -> str:
    """Return a table in a box that scrolls, with a hint where it does, and is called as the table."""
    called = "t" + sha256((caption + inner).encode(errors="surrogatepass")).hexdigest()[:10]
    hint = f'<span class="hint">{text(say("report.page.scroll"))}</span>'
    if caption:
        opened += f'<caption id="{called}">{text(caption)}</caption>'
    else:
        hint += f'<span class="unseen" id="{called}">{text(say("report.page.table"))}</span>'
    return f'<div class="wide" tabindex="0" role="group" aria-labelledby="{called}">{hint}{opened}{inner}</div>\n'


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
        f'<div class="command"><pre>{text(line)}</pre><button type="button" class="copy" hidden>'
        f'<span class="before">{copy}</span><span class="after">{done}</span></button></div>\n'
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
