"""The tutorial's framing against a few lines that follow the tutorial to the letter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from weitune.data.conversation import Conversation, Example, Turn
from weitune.data.frame.choose import framing_for
from weitune.data.prepare.prepare import prepare
from weitune.errors import DataError, ModelError
from weitune.recipe.schema import Recipe, Tokens

SYSTEM = "现在你要扮演皇帝身边的女人--甄嬛"


def by_the_letter(tokenizer: Any, row: dict[str, str], max_length: int = 384) -> tuple[list[int], list[int]]:
    """Return input_ids and labels as section 4 of the design words them."""
    framing = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{row['instruction'] + row['input']}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    prompt = tokenizer(framing, add_special_tokens=False)["input_ids"]
    answer = tokenizer(row["output"], add_special_tokens=False)["input_ids"]
    input_ids = prompt + answer + [tokenizer.pad_token_id]
    labels = [-100] * len(prompt) + answer + [tokenizer.pad_token_id]
    return input_ids[:max_length], labels[:max_length]


def labels_of(example: Example) -> list[int]:
    """Return the labels that transformers would be given."""
    return [token if weight else -100 for token, weight in zip(example.input_ids, example.loss_mask, strict=True)]


def recipe_for(path: Path, **tokens: Any) -> Recipe:
    options = {"template": "tutorial", "max_length": 384, "truncation": "cut"} | tokens
    return Recipe(model="any", data=[str(path)], system=SYSTEM, tokens=Tokens(**options))


def test_all_rows_of_huanhuan(qwen_tokenizer: Any, shared_data: Path) -> None:
    path = shared_data / "huanhuan.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    recipe = recipe_for(path)
    prepared = prepare(recipe, framing_for(qwen_tokenizer, recipe.tokens))
    assert len(rows) == len(prepared) == 3729
    for i, row in enumerate(rows):
        input_ids, labels = by_the_letter(qwen_tokenizer, row)
        example = prepared[i]
        assert list(example.input_ids) == input_ids
        assert labels_of(example) == labels
        assert prepared.lengths[i] == len(input_ids)
    assert int(prepared.lengths.sum()) == 246_969


def test_long_answers_are_cut(qwen_tokenizer: Any, tmp_path: Path) -> None:
    row = {"instruction": "讲个故事", "input": "，要长。", "output": "从前有座山，" * 200}
    path = tmp_path / "one.json"
    path.write_text(json.dumps([row]), encoding="utf-8")
    recipe = recipe_for(path)
    [example] = list(prepare(recipe, framing_for(qwen_tokenizer, recipe.tokens)))
    assert (list(example.input_ids), labels_of(example)) == by_the_letter(qwen_tokenizer, row)
    assert len(example.input_ids) == 384


def test_prompts_equal_the_framing(qwen_tokenizer: Any) -> None:
    framing = framing_for(qwen_tokenizer, Tokens(template="tutorial"))
    row = {"instruction": "你是谁？", "input": "", "output": ""}
    prompt = framing.prompt(Conversation((Turn("system", SYSTEM), Turn("user", "你是谁？"))))
    assert prompt == by_the_letter(qwen_tokenizer, row)[0][:-1]
    stops = qwen_tokenizer.convert_ids_to_tokens(list(framing.stop_tokens))
    assert stops == ["<|endoftext|>", "<|im_end|>"]
    assert framing.notes


@pytest.mark.parametrize(
    "turns",
    [
        (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")),
        (Turn("user", "a"),),
        (Turn("assistant", "b"),),
        (),
    ],
)
def test_single_turns_only(qwen_tokenizer: Any, turns: tuple[Turn, ...]) -> None:
    framing = framing_for(qwen_tokenizer, Tokens(template="tutorial"))
    with pytest.raises(DataError, match="one question and one answer"):
        framing.examples(Conversation(turns))


def test_a_tokenizer_without_a_pad_token_is_refused() -> None:
    from tests.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer("chatml")
    tokenizer.pad_token = None
    with pytest.raises(ModelError, match="pad token"):
        framing_for(tokenizer, Tokens(template="tutorial"))
