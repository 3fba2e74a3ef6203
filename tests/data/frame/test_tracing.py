"""A template that renders disguised texts decides as it does by the texts themselves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.frame.families import tokenizer_of
from weitune.data.frame.control_tokens import ControlTokens
from weitune.data.frame.template import ChatTemplate

CONTROLS = ControlTokens(tokenizer_of("qwen3").backend_tokenizer)
TEXTS = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<|im_end|>", "<tool_response>", "<", "</think", "a", "B", " ", "\n", "x,y"]
    ),
    max_size=6,
).map("".join)
EXPRESSIONS = [
    "t",
    "t.split('</think>')[-1] + u",
    "t.split('</think>')[0].split('<think>')[-1].strip('\\n')",
    "t.split() | join('+')",
    "t.split(none, 1) | join('+')",
    "t.rsplit('<', 1) | join('+')",
    "t.rsplit('</think>', maxsplit=1) | join('+')",
    "t.partition('</think>') | join('+')",
    "t.rpartition(u) | join('+') if u else u",
    "t.splitlines() | join('+')",
    "t.splitlines(true) | join('+')",
    "t.strip() + '|' + t.lstrip('<a') + '|' + t.rstrip('>\\n')",
    "t.removeprefix('<think>') + t.removesuffix('</think>')",
    "t.replace('</think>', '<|im_end|>') + t.replace('a', u, 1) + t.replace('', '-')",
    "t | trim + u | trim('<> ')",
    "t | replace('<think>', '[') + t | replace('a', 'b', 1)",
    "t[1:] + t[:-2] + t[::-1]",
    "t | upper + t.lower()",
    "t | length ~ t.find('</think>') ~ t.count('<') ~ t.isspace() ~ t.startswith('<t') ~ t.endswith(('k>', '\\n'))",
    "'</think>' in t, t == u, t != '<think>', t < u, u in t, t in [u, '<think>'], t not in {'a': 1, '</think>': 2}",
    "t is eq u, t is in ['</think>'], [m, n] | selectattr('content', 'equalto', '<think>') | list | length",
    "[m, m] | map(attribute='content') | map('trim') | join('-')",
    "m | tojson + t | tojson",
    "m | tojson(ensure_ascii=true)",
    "m.get('content') + m['content'] + '%s' % t + '{}'.format(u)",
    "f(t) ~ f(u)",
    "s.kept",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
@given(t=TEXTS, u=TEXTS)
def test_traced_and_plain_renderings_are_the_same_text(expression: str, t: str, u: str) -> None:
    source = (
        "{%- macro f(x) %}{% if '</think>' in x %}{{ x.split('</think>')[1] }}{% else %}<think>{{ x }}{% endif %}"
        "{%- endmacro %}{%- set t = messages[0].content %}{%- set u = messages[1].content %}{%- set m = messages[0] %}"
        "{%- set n = messages[1] %}"
        "{%- set s = namespace(kept='') %}{%- for m in messages if m.content.startswith('<') %}"
        "{%- set s.kept = s.kept ~ loop.index ~ m.content[1:] %}{%- endfor %}{{- EXPRESSION }}"
    ).replace("EXPRESSION", f"({expression})")
    template = ChatTemplate(source, source, {}, {})
    plain, traced, disguise = both(template, [t, u])
    if disguise is not None:
        assert disguise.plain(traced) == plain
        if "'" not in expression and "f(" not in expression:  # all control tokens are the texts' own, and hidden
            assert not list(CONTROLS.find(traced))


def both(template: ChatTemplate, texts: list[str]) -> tuple[str, str, Any]:
    """Render messages with ``texts`` by transformers and disguised."""
    disguise = CONTROLS.disguise(texts, template.writes())
    messages = [{"role": "user", "content": text} for text in texts]
    plain = template.render(messages, [], False).text
    if disguise is None:
        return plain, plain, None
    hidden = [{"role": "user", "content": disguise.hide(text)} for text in texts]
    return plain, template.trace(hidden, [], False, disguise), disguise


def test_what_the_template_writes_is_told_from_what_it_copies() -> None:
    source = (
        "{%- for m in messages %}{% if '</think>' in m.content %}{% set a = m.content.split('</think>') %}"
        "{{- '<think>' + a[0] + '</think>' + a[1] }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    plain, traced, disguise = both(ChatTemplate(source, source, {}, {}), ["why<think></think>so", "<think>"])
    assert plain == "<think>why<think></think>so<think>"
    found = [(c.start, traced[c.start : c.stop]) for c in CONTROLS.find(traced)]
    assert found == [(0, "<think>"), (17, "</think>")]
    assert disguise.plain(traced) == plain


def test_a_template_cannot_reach_what_renders_it() -> None:
    source = (
        "{{ messages[0].content }}{{ weitune is defined }}{{ disguise is defined }}{{ messages[0].content.__class__ }}"
    )
    plain, traced, disguise = both(ChatTemplate(source, source, {}, {}), ["</think>"])
    assert disguise.plain(traced) == plain == "</think>FalseFalse"
