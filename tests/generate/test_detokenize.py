"""Pieces of text are whole characters, and joined they are the text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.tiny import CORPUS, tiny_tokenizer
from weitune.generate.detokenize import REPLACEMENT, Detokenizer

TOKENIZER = tiny_tokenizer("chatml")


def pieces_of(tokenizer: Any, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [detokenizer.add(token) for token in ids]


def sentencepiece_like() -> Any:
    """A tokenizer whose decoder drops the first space of a text and joins bytes, as Llama 2's and Mistral's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=in_bytes, show_progress=False)
    core.train_from_iterator(CORPUS.splitlines()[:6], trainer)  # English only: Chinese comes as bytes
    plain = json.loads(core.to_str()) | {"added_tokens": []}  # bytes are text, not special tokens
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(plain)))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters=[REPLACEMENT])))
def test_every_piece_is_whole_and_nothing_is_lost(text: str) -> None:
    assume(not any(token in text for token in TOKENIZER.get_added_vocab()))  # Hypothesis tries literals of our own code
    pieces = pieces_of(TOKENIZER, TOKENIZER(text)["input_ids"])
    assert "".join(pieces) == text
    assert not any(REPLACEMENT in piece for piece in pieces)


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40))
@settings(max_examples=300)
def test_any_tokens_give_what_decoding_at_once_gives(ids: list[int]) -> None:
    at_once = TOKENIZER.decode(ids, skip_special_tokens=True)
    assert "".join(pieces_of(TOKENIZER, ids)) == at_once.rstrip(REPLACEMENT)


def test_a_character_of_many_tokens_appears_with_its_last() -> None:
    ids = TOKENIZER("甄")["input_ids"]
    assert len(ids) == 3
    assert pieces_of(TOKENIZER, ids) == ["", "", "甄"]


def test_text_before_half_a_character_is_not_held_back() -> None:
    first_byte = TOKENIZER("甄")["input_ids"][0]
    assert pieces_of(TOKENIZER, [*TOKENIZER("是")["input_ids"], first_byte])[-2:] == ["是", ""]


@pytest.mark.parametrize("text", ["The capital of France is Paris", "甄嬛 says hello 😀 to you", "a  b"])
def test_spaces_between_words_stay_with_a_decoder_that_drops_the_first(text: str) -> None:
    tokenizer = sentencepiece_like()
    assert "".join(pieces_of(tokenizer, tokenizer(text)["input_ids"])) == text


def test_special_tokens_are_not_shown_and_added_ones_are() -> None:
    tokenizer = tiny_tokenizer("qwen3")
    ids = tokenizer("<think>so</think><|im_end|>yes")["input_ids"]
    assert "".join(pieces_of(tokenizer, ids)) == "<think>so</think>yes"
