"""Small examples with common prefixes, for hypothesis to draw."""

from hypothesis import strategies as st

from weitune.data.conversation import Example, Span
from weitune.data.preference.values import Group


@st.composite
def example(draw: st.DrawFn) -> Example:
    ids = draw(st.lists(st.integers(0, 2), min_size=2, max_size=8))
    cuts = sorted(draw(st.lists(st.integers(1, len(ids)), min_size=2, max_size=4, unique=True)))
    spans = tuple(
        Span(a, b, draw(st.sampled_from([1.0, 0.5, 2.0]))) for a, b in zip(cuts[::2], cuts[1::2], strict=False)
    )
    return Example(tuple(ids), spans)


examples = st.lists(example(), min_size=1, max_size=12)


@st.composite
def group(draw: st.DrawFn) -> Group:
    """A pair or a judged answer with a short prompt; prompts and answers repeat often."""
    prompt = tuple(draw(st.lists(st.integers(0, 2), min_size=1, max_size=6)))

    def answer() -> Example:
        tokens = draw(st.lists(st.integers(0, 2), min_size=1, max_size=6))
        return Example((*prompt, *tokens), (Span(len(prompt), len(prompt) + len(tokens)),))

    if draw(st.booleans()):
        return Group((answer(), answer()), (True, False))
    return Group((answer(),), (draw(st.booleans()),))


groups = st.lists(group(), min_size=1, max_size=8)
