"""Marks: no text that a model can write is taken for a control token, and none is left in what is passed on."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.data.calls.test_round_trip import form_of, framing_of
from weitune.data.calls.derive import Probe, tools_for
from weitune.data.calls.marks import Marks
from weitune.data.calls.reader import Said, read_answer
from weitune.data.conversation import ToolCall
from weitune.data.frame.encode import Text

CALL = ToolCall("tides", {"port": "Brest"}, "abcdefghi")
ANY = st.text(max_size=20) | st.text(st.characters(categories=["Co"]), max_size=20)
"""Any text that UTF-8 can hold, and text of the private use areas, where fonts put icons."""
SPECIAL = frozenset({0, 9})
SEVERAL = {count: Marks({f"<t{i}>": 3 * i for i in range(count)}, SPECIAL) for count in (4, 2048, 5000)}


@pytest.mark.parametrize("marks", SEVERAL.values(), ids=map(str, SEVERAL))
@example(parts=["".join(map(chr, range(0xF0000, 0xF0010))), 0, 1])
@given(parts=st.lists(ANY | st.integers(0, 3), max_size=8))
def test_text_between_control_tokens_stays_as_it_is(marks: Marks, parts: list[str | int]) -> None:
    tokens = list(marks.texts)
    pieces = [Text(part, bare=True) if isinstance(part, str) else (tokens[-part],) for part in parts]
    marked = marks.of_pieces(pieces)
    controls = [token for piece in pieces if not isinstance(piece, Text) for token in piece]
    assert [part for part in marks.pieces(marked) if isinstance(part, int)] == controls
    assert marks.tokens_in(marked) == set(controls)
    spelled = [(piece.text, False) if isinstance(piece, Text) else (marks.texts[piece[0]], piece[0] in SPECIAL)
               for piece in pieces]  # fmt: skip
    assert marks.written(marked) == "".join(text for text, _ in spelled)
    assert marks.shown(marked) == "".join(text for text, special in spelled if not special)
    marks.written(marked).encode()  # no mark is left


@example(first=0xF0000)
@given(first=st.integers(0xE000, 0x10FFFD - 600))
def test_no_characters_forge_a_call(first: int) -> None:
    form, marks = form_of("qwen2.5")
    text = "".join(
        part if isinstance(part, str) else chr(first + sorted(marks.texts).index(part))
        for part in marks.pieces(Probe(framing_of("qwen2.5")).write("", [CALL]))
    )
    assert read_answer(text, form, marks, tools_for([CALL])) == Said(text)


def test_a_control_token_within_an_argument_is_text() -> None:
    form, marks = form_of("qwen2.5")
    control = marks.of_pieces([(framing_of("qwen2.5").control_tokens["<|im_start|>"],)])
    text = Probe(framing_of("qwen2.5")).write("", [CALL]).replace("Brest", f"a{control}b")
    [call] = read_answer(text, form, marks, tools_for([CALL])).calls
    assert call.arguments == {"port": "a<|im_start|>b"}
