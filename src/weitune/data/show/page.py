"""The preview as one self-contained HTML page, in colours, with a filter by length, problem and text.

Without JavaScript, only the filter is missing. All text is escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from weitune.data.show.preview import BORDER, Part, PreviewAnswer, PreviewItem
from weitune.messages import say
from weitune.messages.language import language

_STYLE = """
:root { color-scheme: light dark; --learned: #bfe8c6; --worse: #f6c9c0; --control: #8a8f98; --line: #8884;
        --bad: #c0392b }
@media (prefers-color-scheme: dark) { :root { --learned: #1f5130; --worse: #5e2a20; --bad: #ff8a7a } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
form { position: sticky; top: 0; background: Canvas; padding: .6rem 0; display: flex; flex-wrap: wrap; gap: .6rem 1rem;
       border-bottom: 1px solid var(--line) }
input[type=number] { width: 5rem }
article { border-bottom: 1px solid var(--line); padding: .8rem 0 }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere }
h2 { font-size: .9rem; overflow-wrap: anywhere; font-weight: 600; margin: 0 0 .4rem }
h2 small { font-weight: 400; color: var(--control); margin-left: .5rem }
.tag { background: var(--line); border-radius: .6rem; padding: 0 .5rem; font-size: .8rem; margin-left: .4rem }
pre { font: 13px/1.55 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 }
mark { background: var(--learned); color: inherit }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; margin-top: .5rem }
.answers h3 { font-size: .8rem; margin: 0 0 .2rem }
.worse mark { background: var(--worse) }
.control { color: var(--control) }
.alike { font-size: 0; border-bottom: 1px dotted var(--bad) }
.alike::before { content: attr(data-shown); font: 13px/1.55 ui-monospace, monospace }
.bad { color: var(--bad) }
"""

_SCRIPT = """
const form = document.querySelector('form'), rows = [...document.querySelectorAll('article')];
function filter() {
  const f = form.elements, least = +f.least.value || 0, most = +f.most.value || Infinity;
  const text = f.text.value.toLowerCase();
  let shown = 0;
  for (const row of rows) {
    const n = +row.dataset.tokens, tags = row.dataset.tags.split('|');
    const fits = n >= least && n <= most && (!f.tag.value || tags.includes(f.tag.value))
      && (!text || row.textContent.toLowerCase().includes(text));
    row.hidden = !fits; shown += fits;
  }
  const output = document.getElementById('shown');
  output.textContent = output.dataset.text.replace('{0}', shown).replace('{1}', rows.length);
}
form.addEventListener('input', filter); form.addEventListener('submit', e => e.preventDefault()); filter();
"""


def page(title: str, items: Sequence[PreviewItem], facts: Sequence[str]) -> str:
    """Return the page for ``items``; ``facts`` are lines about all of them, such as the name of the template."""
    tags = Counter(tag for item in items for tag in item.tags)
    choices = "".join(f'<option value="{escape(tag)}">{escape(tag)} ({n})</option>' for tag, n in tags.items())
    marked, grey = say("data.page.marked_text"), say("data.page.grey_tokens")
    legend = say(
        "data.page.legend",
        marked=f"<mark>{marked}</mark>",
        grey=f'<span class="control">{grey}</span>',
        example=escape(BORDER.join(("", "<", "th", "ink", ">", ""))),
    )
    shown = escape(say("data.page.shown", shown="{0}", all="{1}"))
    return (
        f'<!doctype html>\n<html lang="{language()}"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style></head>\n<body>\n'
        f"<h1>{escape(title)}</h1>\n" + "".join(f"<p>{escape(fact)}</p>\n" for fact in facts) + f"<p>{legend}</p>\n"
        f'<form><label>{say("data.page.least")} <input name="least" type="number" min="0"></label>\n'
        f'<label>{say("data.page.most")} <input name="most" type="number" min="0"></label>\n'
        f'<label>{say("data.page.tag")} <select name="tag"><option value="">{say("data.page.all_rows")}</option>'
        f"{choices}</select></label>\n"
        f'<label>{say("data.page.text")} <input name="text" type="search"></label>\n'
        f'<output id="shown" data-text="{shown}"></output></form>\n{"".join(map(_article, items))}'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _article(item: PreviewItem) -> str:
    tags = "".join(f'<span class="tag">{escape(tag)}</span>' for tag in item.tags)
    size = say("data.page.size", tokens=item.tokens, learned=item.learned_tokens)
    small = f"<small>{size}</small>" if item.all_parts else ""
    problems = "".join(
        f'<p class="bad">{escape(str(problem))}<br>{escape(problem.fix)}</p>' for problem in item.problems
    )
    text = _pre(item.parts) if item.parts else ""
    answers = f'<div class="answers">{"".join(map(_answer, item.answers))}</div>' if item.answers else ""
    return (
        f'<article data-tokens="{item.tokens}" data-tags="{escape("|".join(item.tags))}">'
        f"<h2>{escape(item.place)}{small}{tags}</h2>{text}{answers}{problems}</article>\n"
    )


def _answer(answer: PreviewAnswer) -> str:
    kind = "better" if answer.liked else "worse"
    return f'<section class="{kind}"><h3>{escape(answer.title)}</h3>{_pre(answer.parts)}</section>'


def _pre(parts: Sequence[Part]) -> str:
    return f"<pre>{''.join(map(_part, parts))}</pre>"


def _part(part: Part) -> str:
    """Return the HTML of a part. Its borders are drawn by CSS, so that copies and the filter have the text as it is."""
    shown = f' class="alike" data-shown="{escape(BORDER.join(part.pieces))}"' if part.borders else ""
    text = escape(part.text)
    if part.kind == "learned":
        weight = say("data.page.weight", weight=part.weight)
        title = f' title="{escape(weight)}"' if part.weight != 1 else ""
        return f"<mark{title}{shown}>{text}</mark>"
    if part.kind == "control":
        return f'<span class="control">{text}</span>'
    return f"<span{shown}>{text}</span>" if shown else text
