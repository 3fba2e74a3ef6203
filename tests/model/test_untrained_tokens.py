"""Added tokens that the base was never trained on, and what is told of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import tiny_model, tiny_tokenizer
from weitune.model.lora.adapter import attach_adapter, token_ids_of
from weitune.model.untrained_tokens import untrained_note, untrained_tokens
from weitune.recipe.schema import Lora

START, END = "<|im_start|>", "<|im_end|>"


def base(**config: Any) -> tuple[Any, Any, int, int]:
    tokenizer = tiny_tokenizer("chatml")
    start, end = token_ids_of(tokenizer, [START, END])
    return tiny_model("qwen2", **config), tokenizer, start, end


def put(model: Any, token: int, row: torch.Tensor) -> None:
    with torch.no_grad():
        model.get_output_embeddings().weight[token] = row


@pytest.mark.parametrize("tied", [False, True])
def test_a_trained_token_is_not_named(tied: bool) -> None:
    model, tokenizer, start, end = base(tie_word_embeddings=tied)
    assert untrained_tokens(model, tokenizer, {7, 8, start, end}) == []
    put(model, 7, model.get_output_embeddings().weight[8].clone())  # not added: what the vocabulary was built with
    assert untrained_tokens(model, tokenizer, {7, 8, start, end}) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_another_added_token_of_none_or_of_zeros_are_found(dtype: torch.dtype) -> None:
    for kind in ("added", "beyond", "zero"):
        model, tokenizer, start, end = base()
        model.to(dtype)
        weight = model.get_output_embeddings().weight
        rows = {"added": weight[start], "beyond": weight[len(tokenizer)], "zero": torch.zeros_like(weight[0])}
        put(model, end, rows[kind].clone() * 1.001)
        assert untrained_tokens(model, tokenizer, {end, 5}) == [end], kind
        assert untrained_tokens(model, tokenizer, {5}) == [], "it is not learned"


def note(model: Any, tokenizer: Any, untrained: int, **keys: Any) -> str | None:
    lora = Lora(r=2, **keys)
    ids = token_ids_of(tokenizer, lora.train_tokens or ())
    adapted = attach_adapter(model, lora, seed=0, base="base", token_ids=ids)
    return untrained_note(adapted.get_base_model(), tokenizer, lora, [untrained])


def test_the_note_names_the_option_that_trains_tied_rows() -> None:
    model, tokenizer, _, end = base(tie_word_embeddings=True)
    told = note(model, tokenizer, end, train_tokens=[START])
    assert told
    assert f'--lora.train_tokens "{START},{END}"' in told
    assert f"on {END}:" in told


def test_without_tied_weights_trained_embeddings_do_not_help() -> None:
    model, tokenizer, _, end = base(tie_word_embeddings=False)
    told = note(model, tokenizer, end, train_tokens=[END])
    assert told
    assert "--lora.modules_to_save lm_head" in told


@pytest.mark.parametrize(
    ("tied", "keys"),
    [
        (True, {"train_tokens": [END]}),
        (False, {"modules_to_save": ["lm_head"]}),
        (True, {"modules_to_save": ["lm_head"]}),
    ],
)
def test_nothing_is_told_of_rows_that_are_trained(tied: bool, keys: dict[str, Any]) -> None:
    model, tokenizer, _, end = base(tie_word_embeddings=tied)
    assert note(model, tokenizer, end, **keys) is None


def test_nothing_is_told_without_untrained_tokens() -> None:
    model, tokenizer, _, _ = base()
    assert untrained_note(model, tokenizer, Lora(), []) is None
