"""Calls: whatever a template writes for a call is read back as that call, whole or in pieces."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.frame import families, modern
from tests.tiny import TEMPLATES, tiny_tokenizer
from weitune.data.calls.derive import Probe, answer_form, tools_for
from weitune.data.calls.form import AnswerForm
from weitune.data.calls.marks import Marks
from weitune.data.calls.reader import AnswerReader, ReadAs, Said, read_answer
from weitune.data.conversation import ToolCall
from weitune.data.frame.choose import framing_for
from weitune.data.frame.framing import Framing
from weitune.recipe.schema import Tokens

_LLAMA3_TOOLS = "{%- if tools %}{{- 'Tools: ' + tools | tojson }}{%- endif %}"
LLAMA3 = replace(families.FAMILIES["llama3"], template=_LLAMA3_TOOLS + families.LLAMA3)
NAMED = ["qwen2.5", "qwen3", "llama3", "mistral", "mistral7", "gemma4", "gpt-oss"]
"""The models of the promise; Llama 3 and gpt-oss write one call a turn."""
OTHERS = ["llama4", "qwen3.5", "glm4.5", "minimax-m2", "kimi-k2",
          "exaone4", "granite", "phi4-mini"]  # fmt: skip
PAIRS = {"qwen3.5", "glm4.5", "minimax-m2"}


@cache
def framing_of(name: str) -> Framing:
    if name == "llama3":
        return framing_for(families.build(LLAMA3), Tokens())
    tokenizer = (modern if name in modern.MODERN else families).tokenizer_of(name)
    return framing_for(tokenizer, Tokens())


@cache
def form_of(name: str) -> tuple[AnswerForm, Marks]:
    return answer_form(framing_of(name))


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=12) | st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>\n",
        "[TOOL_CALLS]",
        '<|"|>',
        "<|call|>",
        '"}}',
        "{a:b}",
        "<|im_end|>",
        "</think>",
        "\\n",
    ]
)
LEAF = (
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)
KEY = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
VALUE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=3), max_leaves=6
)
NAME = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_\-]{0,15}", fullmatch=True)
CALLS = st.lists(
    st.builds(
        ToolCall, NAME, st.dictionaries(KEY, VALUE, max_size=4), st.from_regex(r"[a-zA-Z0-9]{9}", fullmatch=True)
    ),
    min_size=1,
    max_size=3,
    unique_by=(lambda call: call.name, lambda call: call.id),
)


def in_pieces(text: str, form: AnswerForm, marks: Marks, tools: Any, sizes: list[int]) -> Said:
    reader, said = AnswerReader(ReadAs(form, marks, tools)), Said()
    at, number = 0, 0
    while at < len(text):
        size = sizes[number % len(sizes)]
        said += reader.add(text[at : at + size])
        at, number = at + size, number + 1
    return said + reader.end()


@pytest.mark.parametrize("name", NAMED)
@settings(max_examples=200, deadline=None)
@given(calls=CALLS, sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_what_the_template_writes_is_read_back(name: str, calls: list[ToolCall], sizes: list[int]) -> None:
    form, marks = form_of(name)
    calls = calls if form.several else calls[:1]
    text = Probe(framing_of(name)).write("", calls)
    said = read_answer(text, form, marks, tools_for(calls))
    assert [call[:2] for call in said.calls] == [call[:2] for call in calls]
    assert not said.content
    assert in_pieces(text, form, marks, tools_for(calls), sizes) == said


@pytest.mark.parametrize("name", OTHERS)
@settings(max_examples=30, deadline=None)
@given(calls=CALLS)
def test_other_templates_too(name: str, calls: list[ToolCall]) -> None:
    form, marks = form_of(name)
    assert not form.no_calls
    if name in PAIRS:  # nothing tells the end of a value but the text itself
        calls = [call._replace(arguments={"text": f"{call.name}\n", "count": 3, "list": [1, "a"]}) for call in calls]
    if name == "kimi-k2":  # ids hold the names there
        calls = [call._replace(id=None) for call in calls]
    probe = Probe(framing_of(name))
    text = probe.write("", calls, reasoning="Let me see." if not form.think and form.thought else None)
    said = read_answer(text, form, marks, tools_for(calls))
    assert [call[:2] for call in said.calls] == [call[:2] for call in calls]


CALL = ToolCall("tides", {"port": "Brest"}, "abcdefghi")


def test_content_reasoning_and_calls_are_told_apart() -> None:
    for name in ("qwen2.5", "qwen3", "minimax-m2"):
        form, marks = form_of(name)
        text = Probe(framing_of(name)).write("Let me look.", [CALL], "The moon.\n\nIs it full?")
        said = in_pieces(text, form, marks, tools_for([CALL]), [1])
        assert said == Said("Let me look.", "The moon.\n\nIs it full?", (ToolCall("tides", {"port": "Brest"}),))


@pytest.mark.parametrize("name", sorted({*NAMED, *OTHERS} - {"minimax-m2"}))  # whose prompts open the reasoning
def test_what_opens_an_answer_without_reasoning_is_not_content(name: str) -> None:
    form, marks = form_of(name)
    text = f'{form.plain_opening}{{"a": 1}}'
    assert in_pieces(text, form, marks, None, [1]) == Said('{"a": 1}')
    assert bool(form.plain_opening) == (name in {"qwen3", "gpt-oss", "glm4.5", "qwen3.5"})


def test_channels_are_read() -> None:
    form, marks = form_of("gpt-oss")
    probe = Probe(framing_of("gpt-oss"))
    said = in_pieces(probe.write("At noon.", (), "The moon."), form, marks, None, [1])
    assert said == Said("At noon.", "The moon.")
    assert in_pieces(probe.write("At noon."), form, marks, None, [2]) == Said("At noon.")


@pytest.mark.parametrize(
    "spoil",
    [lambda text: text[:-3], lambda text: text.replace("{", "", 1), lambda text: text.replace('"name"', '"nome"'),
     lambda text: text + "x", lambda text: text.replace('{"port": "Brest"}', '"Brest"')],
)  # fmt: skip
def test_malformed_calls_are_content(spoil: Any) -> None:
    framing = framing_of("qwen2.5")
    form, marks = form_of("qwen2.5")
    text = spoil(Probe(framing).write("Well.", [CALL]))
    said = in_pieces(text, form, marks, tools_for([CALL]), [1])
    assert said == Said(marks.written(text))


def test_spelled_out_tokens_call_nothing() -> None:
    form, marks = form_of("qwen2.5")
    text = marks.written(Probe(framing_of("qwen2.5")).write("", [CALL]))
    assert read_answer(text, form, marks, tools_for([CALL])) == Said(text)


def test_an_answer_without_tools_is_content() -> None:
    form, marks = form_of("qwen2.5")
    text = Probe(framing_of("qwen2.5")).write("", [CALL])
    assert read_answer(text, form, marks, None) == Said(marks.shown(text))


@pytest.mark.parametrize("name", ["smollm2", "gemma3", "phi4"])
def test_a_template_without_calls_says_so(name: str) -> None:
    assert "does not write calls" in form_of(name)[0].no_calls


def test_a_template_that_lists_no_tools_says_so() -> None:
    for tokenizer in (families.tokenizer_of("llama3"), modern.tokenizer_of("deepseek-v3")):
        form, _ = answer_form(framing_for(tokenizer, Tokens()))
        assert "leaves out the tool" in form.no_calls


def test_a_call_that_comes_back_changed_is_refused_with_the_call() -> None:
    source = families.QWEN25.replace("call.function.arguments | tojson", "call.function.arguments | tojson | upper")
    broken = replace(families.FAMILIES["qwen2.5"], template=source)
    form, _ = answer_form(framing_for(families.build(broken), Tokens()))
    assert form.calls is None
    assert "cannot be read back" in form.no_calls or "comes back as" in form.no_calls


@pytest.mark.parametrize("name", [*families.FAMILIES, *TEMPLATES])
@pytest.mark.parametrize("template", ["chat", "tutorial"])
def test_every_framing_has_a_form(name: str, template: Any) -> None:
    tokenizer = (families.tokenizer_of if name in families.FAMILIES else tiny_tokenizer)(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    framing = framing_for(tokenizer, Tokens(template=template))
    form, marks = answer_form(framing)
    assert form.calls is not None or form.no_calls
    text = Probe(framing).write("At noon.")
    said = read_answer(text, form, marks, None)
    assert (said.content.strip(), said.reasoning) == ("At noon.", "")
