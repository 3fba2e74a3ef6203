"""What is learned from data as one page, in colours, with a filter by length, problem and text.

Without JavaScript, only the filter is missing. What all rows begin with, such as a system prompt, stands on the page
once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import takewhile

from weitune.data.problems import Problem
from weitune.data.show.preview import BORDER, Part, PreviewAnswer, PreviewItem
from weitune.messages import in_english, joined, say
from weitune.messages.translate import translated
from weitune.report.data_section import place_text
from weitune.report.markup import attributes, lang, text, versions
from weitune.report.page import Content, page, section

_LEAST_SHARED = 8
"""Tokens of a beginning that is worth leaving out."""


@page
def data_page(title: str, items: Sequence[PreviewItem], facts: Sequence[str]) -> Content:
    """Return the page for ``items``; ``facts`` are lines about all of them, such as the name of the template."""
    shared = shared_beginning(items)
    once = section(say("report.data_page.shared"), _pre(shared)) if shared else ""
    lines = "".join(f"<p>{text(translated(fact, 'data', 'model'))}</p>\n" for fact in facts)
    articles = "".join(_article(item, len(shared)) for item in items)
    lead = say("report.data_page.rows", count=len(items))
    return Content(title, lead, [lines, _legend(), once, _form(items), articles], scripts=["filter.js"])


def _legend() -> str:
    example = BORDER.join(("", "<", "th", "ink", ">", ""))
    legend = text(say("report.data_page.legend", marked="{marked}", grey="{grey}", example=example))
    marked, grey = text(say("report.data_page.marked_text")), text(say("report.data_page.grey_tokens"))
    legend = legend.format(marked=f"<mark>{marked}</mark>", grey=f'<span class="control">{grey}</span>')
    return f"<p>{legend}</p>\n"


def shared_beginning(items: Sequence[PreviewItem]) -> tuple[Part, ...]:
    """Return the parts that all of two or more ``items`` begin with, none if they are few tokens."""
    shown = [item.parts for item in items if item.parts]
    if len(shown) < 2:
        return ()
    columns = zip(*shown, strict=False)
    shared = tuple(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, columns))
    return shared if sum(part.tokens for part in shared) >= _LEAST_SHARED else ()


def _form(items: Sequence[PreviewItem]) -> str:
    tags = Counter(tag for item in items for tag in _tags(item))
    choices = _option("", say("report.data_page.all_rows"))
    choices += "".join(_option(in_english(tag), joined("", [tag, f" ({count})"])) for tag, count in tags.items())
    told = versions(say("report.data_page.shown", shown="{0}", all="{1}"))
    shown = "".join(f'<span class="{k}" lang="{k}" data-text="{escape(words)}"></span>' for k, words in told.items())
    return (
        f'<form hidden><label>{text(say("report.data_page.least"))} <input name="least" type="number" min="0">'
        f'</label>\n<label>{text(say("report.data_page.most"))} <input name="most" type="number" min="0"></label>\n'
        f'<label>{text(say("report.data_page.tag"))} <select name="tag">'
        f"{choices}</select></label>\n"
        f'<label>{text(say("report.data_page.text"))} <input name="text" type="search"></label>\n'
        f'<output id="shown">{shown}</output></form>\n'
    )


def _option(value: str, label: str) -> str:
    """Return a choice; a script writes its label, since it cannot hold one for each language."""
    return f'<option value="{escape(value)}"{attributes("data-h", label)}></option>'


def _tags(item: PreviewItem) -> list[str]:
    return [translated(tag, "data") for tag in item.tags]


def _article(item: PreviewItem, shared: int) -> str:
    """Return a row, without the first ``shared`` of its parts."""
    tags = _tags(item)
    size = say("report.data_page.size", tokens=item.tokens, learned=item.learned_tokens)
    small = f"<small>{text(size)}</small>" if item.all_parts else ""
    above = f'<span class="above">{text(say("report.data_page.above"))}</span> ' if shared and item.parts else ""
    shown = _pre(item.parts[shared:], above) if item.parts else ""
    answers = f'<div class="answers">{"".join(map(_answer, item.answers))}</div>' if item.answers else ""
    return (
        f'<article data-tokens="{item.tokens}" data-tags="{escape("|".join(map(in_english, tags)))}">'
        f"<h2>{text(place_text(item.place))}{small}"
        f"{''.join(f'<span class={chr(34)}tag{chr(34)}>{text(tag)}</span>' for tag in tags)}</h2>"
        f"{shown}{answers}{''.join(map(_problem, item.problems))}</article>\n"
    )


def _problem(problem: Problem) -> str:
    told, fix = (translated(each, "data") for each in (str(problem), problem.fix))
    return f'<p class="bad">{text(told)}<br>{text(fix)}</p>'


def _answer(answer: PreviewAnswer) -> str:
    kind = "better" if answer.liked else "worse"
    title = translated(answer.title, "data")
    return f'<section class="{kind}"><h3>{text(title)}</h3>{_pre(answer.parts)}</section>'


def _pre(parts: Sequence[Part], above: str = "") -> str:
    written = lang("".join(part.text for part in parts))
    return f"<pre{written}>{above}{''.join(map(_part, parts))}</pre>"


def _part(part: Part) -> str:
    """Return the HTML of a part. Its borders are drawn by CSS, so that copies and the filter have the text as it is."""
    shown = f' class="alike" data-shown="{escape(BORDER.join(part.pieces))}"' if part.borders else ""
    written = escape(part.text)
    if part.kind == "learned":
        weight = f' title="× {part.weight:g}"' if part.weight != 1 else ""
        return f"<mark{weight}{shown}>{written}</mark>"
    if part.kind == "control":
        return f'<span class="control">{written}</span>'
    return f"<span{shown}>{written}</span>" if shown else written
