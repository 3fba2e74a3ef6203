"""The one chat template of vLLM renders for every model what that model's own renders."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import TEMPLATES, tiny_tokenizer
from weitune.serve.vllm.middleware import VARIABLE
from weitune.serve.vllm.template import template_by_model

DIALOGUES = (
    [{"role": "user", "content": "  Who are you?\n"}],
    [{"role": "system", "content": "You are 甄嬛."}, {"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
)
_TOKENIZER = tiny_tokenizer("qwen3")


def rendered(template: str, messages: Any, **more: Any) -> str:
    """Render as transformers and vLLM do."""
    try:
        return str(
            _TOKENIZER.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True, **more
            )
        )
    except Exception as error:  # noqa: BLE001  (Gemma's template refuses a system turn)
        return f"refused: {error}"


def test_models_that_are_framed_alike_need_no_variable() -> None:
    assert template_by_model({"base": "text\n", "a": "text\n"}) == "text\n"


def test_every_family_renders_as_alone() -> None:
    texts = {name: family.template for name, family in TEMPLATES.items() if family.template}
    joined = template_by_model(texts)
    for name, template in texts.items():
        for messages in DIALOGUES:
            assert rendered(joined, messages, **{VARIABLE: name}) == rendered(template, messages)


_SPACE = st.sampled_from(["", " ", "\t", "\n", "\r\n", "\n\n", "  \n", "\n  ", " \n \n", "x", "x\n"])
_CORE = st.sampled_from([
    "x", "{{ messages[0].content }}", "{%- if true %}\n  y\n{%- endif %}", "{% if true %}y{% endif %}", "{# note #}",
    "{%- set messages = [{'role': 'system', 'content': 's'}] + messages %}{{ messages | length }}",
    "{% for m in messages -%} {{ m.role }} {% endfor %}", "{% macro f() %}m{% endmacro %}{{ f() }}",
    "'\"{{ \"\\\"'\" }}",
])  # fmt: skip
_TEXT = st.tuples(_SPACE, _CORE, _SPACE, _CORE, _SPACE).map("".join)


@given(
    st.dictionaries(st.sampled_from(["base", "a", 'b"\\', "甄嬛", "😀", "{% endif %}", "new\nline"]), _TEXT, min_size=1)
)
def test_space_at_the_edges_and_names_of_any_kind(texts: dict[str, str]) -> None:
    joined = template_by_model(texts)
    for name, text in texts.items():
        assert rendered(joined, DIALOGUES[2], **{VARIABLE: name}) == rendered(text, DIALOGUES[2])


@pytest.mark.parametrize("arguments", [{}, {VARIABLE: "c"}])
def test_a_request_without_the_name_is_refused_rather_than_framed_in_some_way(arguments: dict[str, str]) -> None:
    joined = template_by_model({"a": "A", "base": "B"})
    assert "was not told which model is asked" in rendered(joined, DIALOGUES[0], **arguments)
