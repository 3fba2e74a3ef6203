"""The arguments of a template that a recipe gives must be those that the template reads."""

from __future__ import annotations

from typing import Any

import pytest

from tests.data.frame.families import tokenizer_of
from tests.tiny import tiny_tokenizer
from weitune.data.frame.choose import check_arguments, framing_for
from weitune.errors import RecipeError
from weitune.recipe.schema import Tokens


@pytest.mark.parametrize(
    ("family", "template", "arguments", "told"),
    [
        ("qwen3", "chat", {"enable_thinkng": False}, "reads no argument 'enable_thinkng'.* but 'enable_thinking'"),
        ("qwen2.5", "chat", {"enable_thinking": False}, "those it reads: -"),
        ("qwen3", "chat", {"enable_thinking": False, "xyz": 1}, "those it reads: enable_thinking"),
        (None, "tutorial", {"enable_thinking": False}, "those it reads: -"),
    ],
)
def test_an_argument_that_nothing_reads_is_refused(
    family: str | None, template: Any, arguments: dict[str, Any], told: str
) -> None:
    tokens = Tokens(template=template, template_args=arguments)
    tokenizer = tokenizer_of(family) if family else tiny_tokenizer("chatml")
    with pytest.raises(RecipeError, match=told):
        check_arguments(framing_for(tokenizer, tokens), tokens)


def test_arguments_that_are_read_pass() -> None:
    for family, arguments in (
        ("qwen3", None),
        ("qwen3", {}),
        ("qwen3", {"enable_thinking": False}),
        ("llama3", {"bos_token": "<|begin_of_text|>"}),
    ):
        tokens = Tokens(template_args=arguments)
        check_arguments(framing_for(tokenizer_of(family), tokens), tokens)
