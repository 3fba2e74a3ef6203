"""What is learned from data as one page, in colours, with a filter by length, problem and text.

Without JavaScript, only the filter is missing. What all rows begin with, such as a system prompt, stands on the page
once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import takewhile

from weitune.data.show.preview import BORDER, Part, PreviewAnswer, PreviewItem
from weitune.messages import say
from weitune.report.page import lang, page, section

_LEAST_SHARED = 8
"""Tokens of a beginning that is worth leaving out."""


def data_page(title: str, items: Sequence[PreviewItem], facts: Sequence[str]) -> str:
    """Return the page for ``items``; ``facts`` are lines about all of them, such as the name of the template."""
    marked, grey = say("report.data_page.marked_text"), say("report.data_page.grey_tokens")
    legend = say(
        "report.data_page.legend",
        marked=f"<mark>{marked}</mark>",
        grey=f'<span class="control">{grey}</span>',
        example=escape(BORDER.join(("", "<", "th", "ink", ">", ""))),
    )
    shared = shared_beginning(items)
    once = section(say("report.data_page.shared"), _pre(shared)) if shared else ""
    lines = "".join(f"<p>{escape(fact)}</p>\n" for fact in facts)
    articles = "".join(_article(item, len(shared)) for item in items)
    lead = say("report.data_page.rows", count=len(items))
    return page(title, lead, [lines, f"<p>{legend}</p>\n", once, _form(items), articles], scripts=["filter.js"])


def shared_beginning(items: Sequence[PreviewItem]) -> tuple[Part, ...]:
    """Return the parts that all of two or more ``items`` begin with, none if they are few tokens."""
    shown = [item.parts for item in items if item.parts]
    if len(shown) < 2:
        return ()
    columns = zip(*shown, strict=False)
    shared = tuple(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, columns))
    return shared if sum(part.tokens for part in shared) >= _LEAST_SHARED else ()


def _form(items: Sequence[PreviewItem]) -> str:
    tags = Counter(tag for item in items for tag in item.tags)
    choices = "".join(f'<option value="{escape(tag)}">{escape(tag)} ({n})</option>' for tag, n in tags.items())
    shown = escape(say("report.data_page.shown", shown="{0}", all="{1}"))
    return (
        f'<form hidden><label>{say("report.data_page.least")} <input name="least" type="number" min="0"></label>\n'
        f'<label>{say("report.data_page.most")} <input name="most" type="number" min="0"></label>\n'
        f'<label>{say("report.data_page.tag")} <select name="tag">'
        f'<option value="">{say("report.data_page.all_rows")}</option>{choices}</select></label>\n'
        f'<label>{say("report.data_page.text")} <input name="text" type="search"></label>\n'
        f'<output id="shown" data-text="{shown}"></output></form>\n'
    )


def _article(item: PreviewItem, shared: int) -> str:
    """Return a row, without the first ``shared`` of its parts."""
    tags = "".join(f'<span class="tag">{escape(tag)}</span>' for tag in item.tags)
    size = say("report.data_page.size", tokens=item.tokens, learned=item.learned_tokens)
    small = f"<small>{size}</small>" if item.all_parts else ""
    problems = "".join(
        f'<p class="bad">{escape(str(problem))}<br>{escape(problem.fix)}</p>' for problem in item.problems
    )
    above = f'<span class="above">{say("report.data_page.above")}</span> ' if shared and item.parts else ""
    text = _pre(item.parts[shared:], above) if item.parts else ""
    answers = f'<div class="answers">{"".join(map(_answer, item.answers))}</div>' if item.answers else ""
    return (
        f'<article data-tokens="{item.tokens}" data-tags="{escape("|".join(item.tags))}">'
        f"<h2>{escape(item.place)}{small}{tags}</h2>{text}{answers}{problems}</article>\n"
    )


def _answer(answer: PreviewAnswer) -> str:
    kind = "better" if answer.liked else "worse"
    return f'<section class="{kind}"><h3>{escape(answer.title)}</h3>{_pre(answer.parts)}</section>'


def _pre(parts: Sequence[Part], above: str = "") -> str:
    written = lang("".join(part.text for part in parts))
    return f"<pre{written}>{above}{''.join(map(_part, parts))}</pre>"


def _part(part: Part) -> str:
    """Return the HTML of a part. Its borders are drawn by CSS, so that copies and the filter have the text as it is."""
    shown = f' class="alike" data-shown="{escape(BORDER.join(part.pieces))}"' if part.borders else ""
    text = escape(part.text)
    if part.kind == "learned":
        weight = say("report.data_page.weight", weight=part.weight)
        title = f' title="{escape(weight)}"' if part.weight != 1 else ""
        return f"<mark{title}{shown}>{text}</mark>"
    if part.kind == "control":
        return f'<span class="control">{text}</span>'
    return f"<span{shown}>{text}</span>" if shown else text
