"""The preview as one self-contained HTML page: colours, and a filter by length, problem and text.

Everything is in the page already; without JavaScript only the filter is missing. All text is escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from weitune.data.show.preview import BORDER, Part, Shown

_STYLE = """
:root { color-scheme: light dark; --learned: #bfe8c6; --control: #8a8f98; --line: #8884; --bad: #c0392b }
@media (prefers-color-scheme: dark) { :root { --learned: #1f5130; --bad: #ff8a7a } }
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
  document.getElementById('shown').textContent = shown + ' of ' + rows.length + ' shown';
}
form.addEventListener('input', filter); form.addEventListener('submit', e => e.preventDefault()); filter();
"""


def page(title: str, shown: Sequence[Shown], facts: Sequence[str]) -> str:
    """Return the page for ``shown``; ``facts`` are lines about all of it, such as the template's name."""
    tags = Counter(tag for item in shown for tag in item.tags)
    choices = "".join(f'<option value="{escape(tag)}">{escape(tag)} ({n})</option>' for tag, n in tags.items())
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style></head>\n<body>\n'
        f"<h1>{escape(title)}</h1>\n"
        + "".join(f"<p>{escape(fact)}</p>\n" for fact in facts)
        + "<p><mark>Marked text</mark> is what the model learns to write; "
        '<span class="control">grey tokens</span> only frame the turns. Text that only looks like such a token is '
        f"shown with the borders of its own tokens: {_LETTERS}.</p>\n"
        '<form><label>tokens from <input name="least" type="number" min="0"></label>\n'
        '<label>to <input name="most" type="number" min="0"></label>\n'
        f'<label>only <select name="tag"><option value="">all rows</option>{choices}</select></label>\n'
        '<label>with the text <input name="text" type="search"></label>\n'
        f'<output id="shown"></output></form>\n{"".join(map(_article, shown))}'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _article(item: Shown) -> str:
    tags = "".join(f'<span class="tag">{escape(tag)}</span>' for tag in item.tags)
    size = f"<small>{item.tokens} tokens, {item.learned_tokens} learned</small>" if item.parts else ""
    problems = "".join(
        f'<p class="bad">{escape(str(problem))}<br>{escape(problem.fix)}</p>' for problem in item.problems
    )
    text = f"<pre>{''.join(map(_part, item.parts))}</pre>" if item.parts else ""
    return (
        f'<article data-tokens="{item.tokens}" data-tags="{escape("|".join(item.tags))}">'
        f"<h2>{escape(item.place)}{size}{tags}</h2>{text}{problems}</article>\n"
    )


_LETTERS = escape(BORDER.join(("", "<", "th", "ink", ">", "")))


def _part(part: Part) -> str:
    """Return a part; if it has borders they are only shown, so that copies and the filter have the text as it is."""
    shown = f' class="alike" data-shown="{escape(BORDER.join(part.pieces))}"' if part.borders else ""
    text = escape(part.text)
    if part.kind == "learned":
        title = f' title="weight {part.weight:g}"' if part.weight != 1 else ""
        return f"<mark{title}{shown}>{text}</mark>"
    if part.kind == "control":
        return f'<span class="control">{text}</span>'
    return f"<span{shown}>{text}</span>" if shown else text
