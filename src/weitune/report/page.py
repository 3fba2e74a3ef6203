"""The HTML of reports: one self-contained page, light and dark, for a wide screen and for a phone.

Every string from data, a recipe or a model goes through :func:`text`. The page has no script, and its content security
policy forbids scripts and everything from outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #6b7280; --learned: #bfe8c6; --card: #8881; --good: #15803d;
  --k0: #2563eb; --k1: #dc2626; --k2: #059669; --k3: #d97706; --k4: #7c3aed; --k5: #0891b2;
  --k6: #be185d; --k7: #4d7c0f }
@media (prefers-color-scheme: dark) { :root { --soft: #9ca3af; --learned: #1f5130; --good: #4ade80;
  --k0: #60a5fa; --k1: #f87171; --k2: #34d399; --k3: #fbbf24; --k4: #a78bfa; --k5: #22d3ee;
  --k6: #f472b6; --k7: #a3e635 } }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, "Noto Sans CJK SC", "WenQuanYi Zen Hei", sans-serif; max-width: 72rem; margin: 0 auto;
  padding: 1rem 1.2rem 3rem }
h1 { font-size: 1.6rem; margin: .6rem 0 0; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line) }
p.lead { color: var(--soft); margin: .2rem 0 1rem }
small, .soft { color: var(--soft) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem }
.tile { background: var(--card); border-radius: .6rem; padding: .6rem .8rem }
.tile b { display: block; font-size: 1.25rem; font-weight: 650; overflow-wrap: anywhere }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 1.4rem }
figure { margin: 0 } figcaption { font-weight: 600; font-size: .92rem }
svg { width: 100%; height: auto; display: block }
.legend span { margin-left: .8rem; font-weight: 400 } .legend span::before { content: "— " }
.grid { stroke: var(--line); stroke-width: 1; fill: none } .tick { fill: var(--soft); font-size: 12px }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round } .dot { fill: currentColor }
.faint { opacity: .28; stroke-width: 1 } .dashed { stroke-dasharray: 5 4 }
.c0 { color: var(--k0) } .c1 { color: var(--k1) } .c2 { color: var(--k2) } .c3 { color: var(--k3) }
.c4 { color: var(--k4) } .c5 { color: var(--k5) } .c6 { color: var(--k6) } .c7 { color: var(--k7) }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .92rem }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600 } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.said td { min-width: 12rem; overflow-wrap: anywhere; white-space: pre-wrap }
.said.steps td:first-child { min-width: 0; width: 6rem; color: var(--soft) }
pre { font: 13px/1.5 ui-monospace, monospace; background: var(--card); border-radius: .5rem; padding: .7rem .9rem;
  overflow-x: auto; margin: .5rem 0 } pre.text { white-space: pre-wrap; overflow-wrap: anywhere }
mark { background: var(--learned); color: inherit } .control { color: var(--soft) } .good { color: var(--good) }
details { margin: .6rem 0 } summary { cursor: pointer; font-weight: 600 }
.bar { background: var(--k0); height: .55rem; border-radius: .3rem; min-width: 2px }
@media (max-width: 40rem) {
  .said thead { display: none } .said tr { display: block; border-bottom: 1px solid var(--line); padding: .4rem 0 }
  .said td { display: block; border: 0; padding: .1rem 0; min-width: 0 } .said.steps td:first-child { width: auto }
  .said td[data-h]::before { content: attr(data-h); display: block; font-size: .8rem; color: var(--soft) } }
@media print { body { max-width: none } details { display: block } }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def text(value: object) -> str:
    """Return ``value`` as HTML text, without markup."""
    return escape(str(value), quote=True)


def page(title: str, lead: str, sections: Iterable[str]) -> str:
    """Return a whole page; ``sections`` are HTML already."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{text(title)}</h1>\n"
        f'<p class="lead">{text(lead)}</p>\n{"".join(sections)}</body></html>\n'
    )


def section(title: str, *parts: str) -> str:
    """Return a section of the page, or nothing if it has no content."""
    content = "".join(parts)
    return f"<section><h2>{text(title)}</h2>\n{content}</section>\n" if content else ""


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    """Return facts, as (name, value), in tiles."""
    return f'<div class="tiles">{"".join(map(_tile, facts))}</div>\n'


def _tile(fact: tuple[str, str]) -> str:
    return f'<div class="tile"><small>{text(fact[0])}</small><b>{text(fact[1])}</b></div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: bool = False, said: bool = False) -> str:
    """Return a table that scrolls by itself; ``numbers``: all columns but the first; ``said``: cells hold answers."""
    kind = ' class="n"' if numbers else ""

    def row(cells: Sequence[object], tag: str) -> str:
        first, *others = (
            f"{label if said and tag == 'td' else ''}>{text(cell)}</{tag}>"
            for label, cell in zip(labels, cells, strict=True)
        )
        return f"<tr><{tag}{first}" + "".join(f"<{tag}{kind}{cell}" for cell in others) + "</tr>"

    rows = list(rows)
    if not rows:
        return ""
    labels = [f' data-h="{text(head)}"' for head in heads] or [""] * len(rows[0])  # heads of cells, on a phone
    style = f' class="said{"" if heads else " steps"}"' if said else ""
    head = f"<thead>{row(heads, 'th')}</thead>" if heads else ""
    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="wide"><table{style}>{head}<tbody>{body}</tbody></table></div>\n'


def folded(title: str, content: str) -> str:
    """Return content that is folded until one clicks on ``title``."""
    return f"<details><summary>{text(title)}</summary>{content}</details>\n" if content else ""


def code(lines: str, *, wrapped: bool = False) -> str:
    """Return a block of code or of plain text."""
    return f"<pre{' class=' + chr(34) + 'text' + chr(34) if wrapped else ''}>{text(lines)}</pre>\n"
