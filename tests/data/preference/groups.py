"""Small groups of answers with common beginnings, for hypothesis to draw."""

from __future__ import annotations

from hypothesis import strategies as st

from weitune.data.conversation import Example, Span
from weitune.data.preference.values import Group


def answer(prompt: list[int], learned: list[int]) -> Example:
    """Return ``answer``, which is learned, after ``prompt``."""
    return Example((*prompt, *learned), (Span(len(prompt), len(prompt) + len(learned)),))


_tokens = st.lists(st.integers(0, 2), min_size=1, max_size=4)


@st.composite
def pair(draw: st.DrawFn) -> Group:
    prompt = draw(_tokens)
    return Group((answer(prompt, draw(_tokens)), answer(prompt, draw(_tokens))), (True, False))


@st.composite
def judged(draw: st.DrawFn) -> Group:
    return Group((answer(draw(_tokens), draw(_tokens)),), (draw(st.booleans()),))


@st.composite
def groups(draw: st.DrawFn) -> list[Group]:
    """Groups of one kind, perhaps with copies, in any order."""
    drawn = draw(st.lists(draw(st.sampled_from([pair(), judged()])), min_size=1, max_size=6))
    copies = draw(st.lists(st.sampled_from(drawn), max_size=2))
    return draw(st.permutations([*drawn, *copies]))
